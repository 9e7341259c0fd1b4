// PyTorch's NCCL backend. It lives in libtorch's CUDA half, which is loaded when a GPU is asked for (cuda.rs) and must not be needed to start
// the program: so its two constructors are looked up by name, and all else are virtual functions of c10d::Backend.

#include "c10d.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>
#include <dlfcn.h>
#include <new>

namespace {

using Nccl = c10d::ProcessGroupNCCL;
using Store = c10::intrusive_ptr<c10d::Store>;

// As nm -D shows them; the build pins libtorch's version.
constexpr char OPTIONS[] = "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb";
constexpr char GROUP[] = "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeIS3_"
                         "EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE";

template <typename F> F *constructor(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(found, "libtorch's CUDA half is not loaded, or has no NCCL: ", dlerror());
  return reinterpret_cast<F *>(found);
}

// A new T by the constructor that has been looked up.
template <typename T, typename Construct> T *make(Construct &&construct) {
  static_assert(alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__, "its destructor frees it as new would have made it");
  void *memory = ::operator new(sizeof(T));
  try {
    construct(static_cast<T *>(memory));
  } catch (...) {
    ::operator delete(memory);
    throw;
  }
  return static_cast<T *>(memory);
}

} // namespace

c10::intrusive_ptr<c10d::Backend> make_nccl(const Store &store, int rank, int world, Milliseconds limit) {
  auto *construct_options = constructor<void(Nccl::Options *, bool)>(OPTIONS);
  auto *construct_group = constructor<void(Nccl *, Store, int, int, c10::intrusive_ptr<Nccl::Options>)>(GROUP);
  // At a time-out: end the communicator, so that the GPU goes on, and leave the process alive to save what it has.
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", /*overwrite=*/0);
  auto *plain = make<Nccl::Options>([&](Nccl::Options *memory) { construct_options(memory, false); });
  auto options = c10::intrusive_ptr<Nccl::Options>::unsafe_steal_from_new(plain);
  options->timeout = limit;
  return c10::intrusive_ptr<c10d::Backend>::unsafe_steal_from_new(
      make<Nccl>([&](Nccl *memory) { construct_group(memory, store, rank, world, options); }));
}

// Whether the constructors are there.
extern "C" int p3d_nccl_loadable() {
  return guarded([] {
    constructor<void()>(OPTIONS);
    constructor<void()>(GROUP);
  });
}
