// The few libtorch features that tch does not expose: fused optimizers, CPU autocast, memory formats, custom backward passes and
// TorchScript modules with real parameters.

#include "shim.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/script.h>
#include <torch/version.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <torch/version.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <system_error>
#include <unordered_map>

namespace {

at::DeviceType device_type(int cuda) { return cuda ? at::kCUDA : at::kCPU; }

// A piece of a network, written in Rust. `call` gives null if it panicked.
struct Piece : torch::CustomClassHolder {
  void *closure;
  at::Tensor *(*call)(void *, at::Tensor *);
  void (*drop)(void *);

  Piece(void *closure, at::Tensor *(*call)(void *, at::Tensor *), void (*drop)(void *))
      : closure(closure), call(call), drop(drop) {}
  ~Piece() override { drop(closure); }

  at::Tensor operator()(at::Tensor x) const {
    std::unique_ptr<at::Tensor> out(call(closure, &x));
    TORCH_CHECK(out, "a piece of the network that is computed again has failed");
    return *out;
  }
};

// Keeps the input of a piece alone, and computes the piece again in the backward pass.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static at::Tensor forward(torch::autograd::AutogradContext *ctx, const at::Tensor &x, at::TensorList parameters,
                            const c10::intrusive_ptr<Piece> &piece) {
    std::vector<at::Tensor> inputs{x};
    inputs.insert(inputs.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(inputs);
    ctx->saved_data["piece"] = c10::IValue::make_capsule(piece);
    // No gradients are recorded here: a copy of a weight that autocast kept from here would have none elsewhere.
    struct Uncached {
      bool before = at::autocast::is_autocast_cache_enabled();
      Uncached() { at::autocast::set_autocast_cache_enabled(false); }
      ~Uncached() { at::autocast::set_autocast_cache_enabled(before); }
    } uncached;
    return (*piece)(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx,
                                                 const torch::autograd::variable_list &gradients) {
    auto inputs = ctx->get_saved_variables();
    auto piece = ctx->saved_data["piece"].toCapsule();
    bool input_learns = inputs[0].requires_grad();
    inputs[0] = inputs[0].detach().set_requires_grad(input_learns);
    std::vector<at::Tensor> learn;
    std::copy_if(inputs.begin(), inputs.end(), std::back_inserter(learn), [](const auto &t) { return t.requires_grad(); });
    at::Tensor out;
    {
      at::AutoGradMode record(true);
      out = (*static_cast<Piece *>(piece.get()))(inputs[0]);
    }
    auto found = torch::autograd::grad({out}, learn, {gradients[0]});
    // One for each argument of `forward`, the piece included.
    torch::autograd::variable_list all(inputs.size() + 1);
    for (size_t i = 0, next = 0; i < inputs.size(); i++)
      if (inputs[i].requires_grad()) all[i] = found[next++];
    return all;
  }
};

} // namespace

struct P3dModule {
  torch::jit::Module module;
};

extern "C" {

const char *p3d_error() { return p3d_last_error.c_str(); }

// The version of the headers that this file was compiled with.
const char *p3d_compiled_version() { return TORCH_VERSION; }

// The build settings of the libtorch that is running.
const char *p3d_config() {
  static const std::string config = [] {
    std::string text;
    guarded([&] { text = at::show_config() + "\nCPU capability: " + at::get_cpu_capability(); });
    return text;
  }();
  return config.c_str();
}

int p3d_autocast_get(int cuda) { return at::autocast::is_autocast_enabled(device_type(cuda)); }

int p3d_autocast_set(int cuda, int enabled) {
  return guarded([&] {
    at::autocast::set_autocast_dtype(device_type(cuda), at::kBFloat16);
    at::autocast::set_autocast_enabled(device_type(cuda), enabled != 0);
  });
}

// Drops the bfloat16 copies of the weights; must follow every change of a weight.
int p3d_autocast_clear() {
  return guarded([] { at::autocast::clear_cache(); });
}

// format: 0 contiguous, 1 channels-last (4 or 5 dimensions). Replaces the tensor's storage.
int p3d_set_memory_format(at::Tensor *tensor, int format) {
  return guarded([&] {
    auto layout = at::MemoryFormat::Contiguous;
    if (format && tensor->dim() == 4) layout = at::MemoryFormat::ChannelsLast;
    if (format && tensor->dim() == 5) layout = at::MemoryFormat::ChannelsLast3d;
    at::NoGradGuard guard;
    auto laid_out = tensor->contiguous(layout);
    if (layout != at::MemoryFormat::Contiguous && tensor->size(1) == 1) {
      // With one channel both formats are the same memory; only these strides make convolutions go on with channels last.
      auto strides = laid_out.strides().vec();
      strides[1] = 1;
      laid_out = laid_out.as_strided(laid_out.sizes(), strides);
    }
    tensor->set_data(laid_out);
  });
}

// tch passes pin_memory a device, which libtorch warns about at every call.
int p3d_pin(at::Tensor *tensor) {
  return guarded([&] { *tensor = tensor->pin_memory(); });
}

// Takes the closure over, also where it fails.
at::Tensor *p3d_checkpoint(at::Tensor *x, at::Tensor *const *parameters, size_t n, void *closure,
                           at::Tensor *(*call)(void *, at::Tensor *), void (*drop)(void *)) {
  at::Tensor *out = nullptr;
  guarded([&] {
    auto piece = c10::make_intrusive<Piece>(closure, call, drop);
    auto learnt = list(parameters, n);
    out = new at::Tensor(Checkpoint::apply(*x, at::TensorList(learnt), piece));
  });
  return out;
}

enum { P3D_ADAMW = 0, P3D_ADAM = 1, P3D_SGD = 2 };

// One optimizer step on parameters that all have gradients. `first` and `second` are the moments (SGD: momentum buffers in
// `first`), `steps` float tensors counting updates; all are updated in place.
int p3d_optimizer_step(int kind, at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *first,
                       at::Tensor *const *second, at::Tensor *const *steps, size_t n, double lr, double beta1,
                       double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto p = list(params, n), g = list(grads, n), m = list(first, n);
    if (kind == P3D_SGD) {
      // Buffers that start at zero make the first step no special case, as there is no dampening.
      at::_fused_sgd_(p, g, m, weight_decay, beta1, lr, /*dampening=*/0.0, /*nesterov=*/false, /*maximize=*/false,
                      /*is_first_step=*/false);
      return;
    }
    auto v = list(second, n), s = list(steps, n);
    at::_foreach_add_(s, 1);
    if (kind == P3D_ADAMW) {
      at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
    } else {
      at::_fused_adam_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
    }
  });
}

void p3d_clear_gradient(at::Tensor *tensor) { tensor->mutable_grad().reset(); }

// Scales the gradients so that their joint L2 norm is at most `max_norm` (0: only measures); `norm` receives the norm
// before, a scalar tensor on the gradients' device.
int p3d_clip_gradients(at::Tensor *const *grads, size_t n, double max_norm, at::Tensor *norm) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto g = list(grads, n);
    auto total = at::stack(at::_foreach_norm(g, 2)).norm();
    if (max_norm > 0) at::_foreach_mul_(g, at::clamp_max(max_norm / (total + 1e-6), 1.0));
    *norm = total;
  });
}

// TorchScript: a module tree built from the leaves up.

P3dModule *p3d_module_new(const char *name, P3dModule *sibling) {
  P3dModule *out = nullptr;
  guarded([&] {
    auto unit = sibling ? sibling->module._ivalue()->compilation_unit() : std::make_shared<torch::jit::CompilationUnit>();
    torch::jit::Module module(c10::QualifiedName(name), unit);
    module.register_attribute("training", c10::BoolType::get(), true);
    out = new P3dModule{module};
  });
  return out;
}

void p3d_module_free(P3dModule *module) { delete module; }

int p3d_module_parameter(P3dModule *module, const char *name, at::Tensor *value) {
  return guarded([&] {
    // Without requires_grad at this point the loaded module could not be trained.
    module->module.register_parameter(name, value->detach().cpu().contiguous().clone().set_requires_grad(true), false);
  });
}

int p3d_module_buffer(P3dModule *module, const char *name, at::Tensor *value) {
  return guarded([&] { module->module.register_buffer(name, value->detach().cpu().contiguous().clone()); });
}

int p3d_module_child(P3dModule *module, const char *name, P3dModule *child) {
  return guarded([&] { module->module.register_module(name, child->module); });
}

int p3d_module_define(P3dModule *module, const char *source) {
  return guarded([&] { module->module.define(source); });
}

int p3d_module_save(P3dModule *module, const char *path, const char *extra_name, const char *extra) {
  return guarded([&] {
    std::unordered_map<std::string, std::string> files{{extra_name, extra}};
    // To memory first: on a full disk libtorch's own file writer throws while it is being destroyed, which ends the process.
    std::ostringstream archive;
    module->module.save(archive, files);
    const std::string bytes = archive.str();
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file) throw std::system_error(errno, std::generic_category());
  });
}

// Hands every parameter and buffer of a saved module to `visit`.
int p3d_module_state(const char *path, void *context, void (*visit)(void *, const char *, at::Tensor *)) {
  return guarded([&] {
    auto module = torch::jit::load(path, at::kCPU);
    for (const auto &entry : module.named_parameters()) visit(context, entry.name.c_str(), new at::Tensor(entry.value.detach()));
    for (const auto &entry : module.named_buffers()) visit(context, entry.name.c_str(), new at::Tensor(entry.value));
  });
}
}
