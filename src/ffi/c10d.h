// A rank's group, over PyTorch's c10d.
#pragma once

#include "shim.h"

#include <torch/custom_class.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <mutex>

using Milliseconds = std::chrono::milliseconds;
using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;

// Key in the store: a rank has ended, others need not wait for it.
constexpr char P3D_ENDED[] = "ended";

struct P3dGroup : torch::CustomClassHolder {
  c10::intrusive_ptr<c10d::Store> store;
  int rank, world;
  Milliseconds limit;
  // Gloo, for what the ranks tell each other; so that this matches each other only, whatever becomes of the tensors.
  c10::intrusive_ptr<c10d::Backend> control;
  // Gloo, for tensors on the CPU; and for those on a GPU, over the CPU, where there is no NCCL.
  c10::intrusive_ptr<c10d::Backend> cpu;
  // NCCL; may be null.
  c10::intrusive_ptr<c10d::Backend> cuda;
  // Of a reducer, in the order in which they were launched. Here, since a work keeps connections open.
  Works flying;

  P3dGroup(c10::intrusive_ptr<c10d::Store> store, int rank, int world, Milliseconds limit);
  ~P3dGroup() override;
  void use_nccl();

  // Runs something that waits for other ranks. After a failure the group is closed, so that theirs fail too instead of waiting.
  template <typename F> void collective(const char *what, F &&f) {
    check_open();
    try {
      return f();
    } catch (const c10::Error &e) {
      close(what, e.what_without_backtrace());
    } catch (const std::exception &e) {
      close(what, e.what());
    }
    check_open();
  }

  c10d::Backend &backend(const at::Tensor &tensor) { return tensor.is_cuda() ? *cuda : *cpu; }
  // The tensor, contiguous, where it can be sent from.
  at::Tensor sendable(const at::Tensor &tensor) const { return (cuda ? tensor : tensor.cpu()).contiguous(); }
  // Waits: for a CPU tensor until the work is done, for one on a GPU in its stream.
  static void wait(c10d::Work &work) { TORCH_CHECK(work.wait(), "it was aborted"); }
  // Waits until the work is done on a GPU too, so that nothing that follows can take what a failure has left.
  void finish(c10d::Work &work);
  // Sums over ranks in place.
  c10::intrusive_ptr<c10d::Work> add(at::Tensor &tensor);

  // Ends all connections; the first reason stays. A thread waits for what is still under way.
  void close(const std::string &what, const std::string &why);
  std::string lost();

private:
  std::mutex mutex;
  std::string reason;
  void check_open();
};

// Throws in a build without NCCL's headers and where libtorch's CUDA half is not loaded.
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store> &store, int rank, int world, Milliseconds limit);
