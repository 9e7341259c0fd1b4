// Means over ranks of gradients, in buckets that leave while the backward pass still runs.

#include "c10d.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <memory>

namespace {

struct Bucket {
  std::vector<size_t> members;
  // One after the other as they lie in memory, then for each how many ranks have a gradient for it (a share, when divided).
  at::Tensor flat;
  std::vector<at::Tensor> views;
  size_t missing = 0;

  at::Tensor present() const { return flat.narrow(0, flat.numel() - static_cast<int64_t>(members.size()), static_cast<int64_t>(members.size())); }
};

struct State {
  c10::intrusive_ptr<P3dGroup> group;
  std::vector<at::Tensor> parameters;
  size_t bucket_bytes;
  std::vector<Bucket> buckets;
  // Of each parameter, the bucket it is in; none for those that learn nothing now.
  std::vector<std::optional<size_t>> bucket_of;
  std::vector<bool> seen;
  bool armed = false;
  // Buckets that have left, and those of them that left within the backward pass.
  size_t launched = 0, early = 0;

  // From the last parameter to the first, as gradients come.
  void fill() {
    std::vector<std::optional<size_t>> wanted(parameters.size());
    std::vector<Bucket> found;
    size_t bytes = 0;
    for (size_t i = parameters.size(); i-- > 0;) {
      if (!parameters[i].requires_grad()) continue;
      const bool other = !found.empty() && parameters[found.back().members[0]].scalar_type() != parameters[i].scalar_type();
      if (found.empty() || other || bytes >= bucket_bytes) {
        found.emplace_back();
        bytes = 0;
      }
      bytes += parameters[i].nbytes();
      wanted[i] = found.size() - 1;
      found.back().members.push_back(i);
    }
    if (wanted == bucket_of) return;
    for (auto &bucket : found) {
      int64_t numbers = static_cast<int64_t>(bucket.members.size()), at = 0;
      for (size_t i : bucket.members) numbers += parameters[i].numel();
      auto options = parameters[bucket.members[0]].options().requires_grad(false);
      bucket.flat = at::zeros({numbers}, group->cuda ? options : options.device(at::kCPU));
      for (size_t i : bucket.members) {
        const auto &p = parameters[i];
        // As the parameter lies, so that both are walked through in the order of memory.
        bucket.views.push_back(p.is_non_overlapping_and_dense() ? bucket.flat.as_strided(p.sizes(), p.strides(), at)
                                                                : bucket.flat.narrow(0, at, p.numel()).view(p.sizes()));
        at += p.numel();
      }
    }
    buckets = std::move(found);
    bucket_of = std::move(wanted);
  }

  void arm() {
    fill();
    for (auto &bucket : buckets) bucket.missing = bucket.members.size();
    seen.assign(parameters.size(), false);
    group->flying.clear();
    launched = early = 0;
    armed = true;
  }

  void ready(size_t i) {
    if (!armed || !bucket_of[i]) return;
    TORCH_CHECK(!seen[i], "a gradient came twice: reduce once, after the last backward pass");
    seen[i] = true;
    buckets[*bucket_of[i]].missing--;
    // In one order on all ranks, whatever order gradients come in.
    while (launched < buckets.size() && buckets[launched].missing == 0) {
      launch();
      early++;
    }
  }

  void launch() {
    at::NoGradGuard guard;
    auto &bucket = buckets[launched];
    std::vector<at::Tensor> to, from;
    bucket.present().fill_(1);
    for (size_t k = 0; k < bucket.members.size(); k++) {
      const auto &gradient = parameters[bucket.members[k]].grad();
      if (gradient.defined()) {
        if (gradient.is_alias_of(bucket.flat)) continue;
        to.push_back(bucket.views[k]);
        from.push_back(gradient);
      } else {
        bucket.views[k].zero_();
        bucket.present()[static_cast<int64_t>(k)].zero_();
      }
    }
    if (!to.empty()) at::_foreach_copy_(to, from);
    // From here on the bucket holds them: one copy less, and no second one in memory.
    for (size_t k = 0; k < bucket.members.size(); k++) hand_over(bucket, k);
    group->collective("reducing gradients", [&] { group->flying.push_back(group->add(bucket.flat)); });
    launched++;
  }

  // A gradient that lies on another device than the bucket stays where it is.
  void hand_over(const Bucket &bucket, size_t k) {
    const auto &parameter = parameters[bucket.members[k]];
    if (parameter.grad().defined() && bucket.flat.device() == parameter.device()) parameter.mutable_grad() = bucket.views[k];
  }

  void finish() {
    TORCH_CHECK(armed, "nothing to reduce: not armed");
    armed = false;
    while (launched < buckets.size()) launch();
    at::NoGradGuard guard;
    group->collective("reducing gradients", [&] {
      for (auto &work : group->flying) group->finish(*work);
    });
    group->flying.clear();
    for (auto &bucket : buckets) {
      bucket.flat.div_(group->world);
      std::vector<at::Tensor> to, from;
      for (size_t k = 0; k < bucket.members.size(); k++) {
        const auto &parameter = parameters[bucket.members[k]];
        if (!parameter.grad().defined()) {
          // Only here does a GPU have to be waited for.
          if (bucket.present()[static_cast<int64_t>(k)].item<double>() == 0) continue;
          parameter.mutable_grad() = at::empty_like(parameter);
          hand_over(bucket, k);
        }
        if (parameter.grad().is_alias_of(bucket.flat)) continue;
        to.push_back(parameter.grad());
        from.push_back(bucket.views[k]);
      }
      if (!to.empty()) at::_foreach_copy_(to, from);
    }
  }
};

struct Hook : torch::autograd::PostAccumulateGradHook {
  std::shared_ptr<State> state;
  size_t index;
  Hook(std::shared_ptr<State> state, size_t index) : state(std::move(state)), index(index) {}
  void operator()(const torch::autograd::Variable &) override { state->ready(index); }
};

} // namespace

struct P3dReducer {
  std::shared_ptr<State> state = std::make_shared<State>();
};

extern "C" {

P3dReducer *p3d_reducer_new(P3dGroup *group, at::Tensor *const *parameters, size_t n, size_t bucket_bytes) {
  P3dReducer *out = nullptr;
  guarded([&] {
    auto reducer = std::make_unique<P3dReducer>();
    reducer->state->group = c10::intrusive_ptr<P3dGroup>::reclaim_copy(group);
    reducer->state->parameters = list(parameters, n);
    reducer->state->bucket_bytes = bucket_bytes;
    for (size_t i = 0; i < n; i++)
      torch::autograd::impl::set_post_acc_grad_hooks(*parameters[i], std::make_unique<Hook>(reducer->state, i));
    out = reducer.release();
  });
  return out;
}

void p3d_reducer_free(P3dReducer *reducer) {
  guarded([&] {
    for (const auto &parameter : reducer->state->parameters)
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    delete reducer;
  });
}

int p3d_reducer_arm(P3dReducer *reducer) {
  return guarded([&] { reducer->state->arm(); });
}

// `counts`: buckets, and those that left within the backward pass.
int p3d_reducer_finish(P3dReducer *reducer, size_t *counts) {
  return guarded([&] {
    reducer->state->finish();
    counts[0] = reducer->state->buckets.size();
    counts[1] = reducer->state->early;
  });
}
}
