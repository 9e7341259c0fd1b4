// What the C++ files share: each entry catches every exception; `p3d_error` then holds the message and the result is non-zero.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <exception>
#include <string>
#include <vector>

inline thread_local std::string p3d_last_error;

template <typename F> int guarded(F &&f) {
  try {
    f();
    return 0;
  } catch (const c10::Error &e) {
    p3d_last_error = e.what_without_backtrace();
  } catch (const std::exception &e) {
    p3d_last_error = e.what();
  } catch (...) {
    p3d_last_error = "unknown C++ exception";
  }
  return 1;
}

inline std::vector<at::Tensor> list(at::Tensor *const *tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; i++) out.push_back(*tensors[i]);
  return out;
}
