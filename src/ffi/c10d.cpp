// Ranks that train together: groups of processes and their collectives.

#include "c10d.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/util/Logging.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <sstream>
#include <thread>

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// How often a GPU is asked whether it is done, and the other ranks whether one has ended.
constexpr auto POLL = std::chrono::microseconds(100);
constexpr auto LOOK = std::chrono::seconds(1);

c10::intrusive_ptr<c10d::Backend> make_gloo(const Store &store, const char *name, int rank, int world, Milliseconds limit) {
#ifdef USE_C10D_GLOO
  using c10d::ProcessGroupGloo;
  auto options = ProcessGroupGloo::Options::create(limit);
  const bool lazy = c10d::getDefaultGlooLazyInit();
  // As torch.distributed reads it.
  if (const char *names = std::getenv("GLOO_SOCKET_IFNAME")) {
    std::istringstream list(names);
    for (std::string interface; std::getline(list, interface, ',');)
      options->devices.push_back(ProcessGroupGloo::createDeviceForInterface(interface, lazy));
  } else {
    options->devices.push_back(ProcessGroupGloo::createDefaultDevice(lazy));
  }
  return c10::make_intrusive<ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(name, store), rank, world, options);
#else
  TORCH_CHECK(false, "this build has no Gloo");
#endif
}

} // namespace

#ifndef P3D_NCCL
c10::intrusive_ptr<c10d::Backend> make_nccl(const Store &, int, int, Milliseconds) { TORCH_CHECK(false, "this build has no NCCL"); }
extern "C" int p3d_nccl_loadable() {
  return guarded([] { TORCH_CHECK(false, "this build has no NCCL"); });
}
#endif

P3dGroup::P3dGroup(Store store, int rank, int world, Milliseconds limit)
    : store(std::move(store)), rank(rank), world(world), limit(limit) {
  control = make_gloo(this->store, "control", rank, world, limit);
  cpu = make_gloo(this->store, "cpu", rank, world, limit);
}

P3dGroup::~P3dGroup() {
  flying.clear();
  if (cuda) cuda->shutdown();
}

void P3dGroup::use_nccl() { cuda = make_nccl(c10::make_intrusive<c10d::PrefixStore>("nccl", store), rank, world, limit); }

void P3dGroup::check_open() {
  std::lock_guard<std::mutex> lock(mutex);
  TORCH_CHECK(reason.empty(), reason);
}

std::string P3dGroup::lost() {
  std::lock_guard<std::mutex> lock(mutex);
  return reason;
}

void P3dGroup::close(const std::string &what, const std::string &why) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!reason.empty()) return;
  // Without the place in Gloo's source.
  const auto start = why.rfind('[', 0) == 0 ? why.find_first_not_of("] ", why.find(']')) : 0;
  reason = what + ": " + (start < why.size() ? why.substr(start, why.find('\n', start) - start) : why);
  if (cuda) cuda->abort();
  // Gloo's destructors wait for what runs in their threads.
  std::thread([control = std::move(control), cpu = std::move(cpu), cuda = std::move(cuda), works = std::move(flying)] {}).detach();
  flying.clear();
}

void P3dGroup::finish(c10d::Work &work) {
  if (cuda) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + limit;
    for (auto look = Clock::now() + LOOK; !work.isCompleted(); std::this_thread::sleep_for(POLL)) {
      TORCH_CHECK(Clock::now() < end, "timed out after ", limit.count(), " ms");
      if (Clock::now() < look) continue;
      // NCCL does not notice a rank that has closed.
      TORCH_CHECK(!store->check({P3D_ENDED}), "another rank has ended");
      look = Clock::now() + LOOK;
    }
    if (auto exception = work.exception()) std::rethrow_exception(exception);
  }
  wait(work);
}

c10::intrusive_ptr<c10d::Work> P3dGroup::add(at::Tensor &tensor) {
  std::vector<at::Tensor> tensors{tensor};
  return backend(tensor).allreduce(tensors);
}

namespace {

using Group = c10::intrusive_ptr<P3dGroup>;

at::Tensor gather_rows(P3dGroup &group, const at::Tensor &x, at::IntArrayRef rows) {
  const int64_t most = *std::max_element(rows.begin(), rows.end());
  auto own = group.sendable(x.detach());
  if (own.size(0) < most) {
    auto size = own.sizes().vec();
    size[0] = most - own.size(0);
    own = at::cat({own, own.new_zeros(size)});
  }
  auto size = own.sizes().vec();
  size[0] = most * group.world;
  auto all = own.new_empty(size);
  if (all.numel()) group.collective("gathering", [&] { P3dGroup::wait(*group.backend(own)._allgather_base(all, own)); });
  if (std::any_of(rows.begin(), rows.end(), [&](int64_t n) { return n < most; })) {
    std::vector<at::Tensor> pieces;
    for (int rank = 0; rank < group.world; rank++) pieces.push_back(all.narrow(0, rank * most, rows[rank]));
    all = at::cat(pieces);
  }
  return all.to(x.device());
}

at::Tensor summed(P3dGroup &group, const at::Tensor &x) {
  // Sums of half precision would lose more with every rank.
  auto kind = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16 ? at::kFloat : x.scalar_type();
  auto own = group.sendable(x.detach().to(kind));
  auto all = own.is_alias_of(x) ? own.clone() : own;
  if (all.numel()) group.collective("summing", [&] { P3dGroup::wait(*group.add(all)); });
  return all.to(x.options());
}

struct Gather : torch::autograd::Function<Gather> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const Group &group, const std::vector<int64_t> &rows) {
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    ctx->saved_data["start"] = std::accumulate(rows.begin(), rows.begin() + group->rank, int64_t{0});
    ctx->saved_data["rows"] = rows[group->rank];
    return gather_rows(*group, x, rows);
  }

  static variable_list backward(AutogradContext *ctx, const variable_list &gradients) {
    auto group = ctx->saved_data["group"].toCapsule();
    auto all = summed(static_cast<P3dGroup &>(*group), gradients[0]);
    return {all.narrow(0, ctx->saved_data["start"].toInt(), ctx->saved_data["rows"].toInt()), {}, {}};
  }
};

struct Sum : torch::autograd::Function<Sum> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const Group &group) {
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    return summed(*group, x);
  }

  static variable_list backward(AutogradContext *ctx, const variable_list &gradients) {
    auto group = ctx->saved_data["group"].toCapsule();
    return {summed(static_cast<P3dGroup &>(*group), gradients[0]), {}};
  }
};

Group shared(P3dGroup *group) { return Group::reclaim_copy(group); }

} // namespace

extern "C" {

// Backends that this build has: 1 Gloo, 2 NCCL.
int p3d_backends() {
  int found = 0;
#ifdef USE_C10D_GLOO
  found |= 1;
#endif
#ifdef P3D_NCCL
  found |= 2;
#endif
  return found;
}

// Where the ranks find each other: over TCP, served by one of them or by somebody else; or, of ranks in one process, in memory.
Store *p3d_store_tcp(const char *host, uint16_t port, int serve, size_t world, int64_t limit_ms) {
  // c10d's warnings come with its own stack; what matters is in the errors.
  if (std::getenv("TORCH_CPP_LOG_LEVEL"))
    c10::initLogging();
  else
    FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  Store *out = nullptr;
  guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.numWorkers = world;
    options.timeout = Milliseconds(limit_ms);
    out = new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
  });
  return out;
}

Store *p3d_store_memory(int64_t limit_ms) {
  auto store = c10::make_intrusive<c10d::HashStore>();
  store->setTimeout(Milliseconds(limit_ms));
  return new Store(std::move(store));
}

void p3d_store_free(Store *store) { delete store; }

int p3d_store_set(Store *store, const char *key, const uint8_t *value, size_t n) {
  return guarded([&] { (*store)->set(key, std::vector<uint8_t>(value, value + n)); });
}

// Hands the value to `visit`, if there is one by the limit.
int p3d_store_get(Store *store, const char *key, int64_t limit_ms, void *context, void (*visit)(void *, const uint8_t *, size_t)) {
  return guarded([&] {
    if (limit_ms) (*store)->wait({key}, Milliseconds(limit_ms));
    if (!(*store)->check({key})) return;
    auto value = (*store)->get(key);
    visit(context, value.data(), value.size());
  });
}

P3dGroup *p3d_group_new(Store *store, int rank, int world, int64_t limit_ms) {
  P3dGroup *out = nullptr;
  guarded([&] { out = c10::make_intrusive<P3dGroup>(*store, rank, world, Milliseconds(limit_ms)).release(); });
  return out;
}

int p3d_group_use_nccl(P3dGroup *group) {
  return guarded([&] { group->use_nccl(); });
}

void p3d_group_free(P3dGroup *group) {
  guarded([&] { Group::reclaim(group); });
}

// Empty while nothing has failed; valid until the thread's next call.
const char *p3d_group_lost(P3dGroup *group) {
  static thread_local std::string reason;
  reason = group->lost();
  return reason.c_str();
}

void p3d_group_close(P3dGroup *group, const char *why) {
  guarded([&] { group->close("ended", why); });
}

// What each rank has, `n` numbers of every one, in the order of ranks.
int p3d_group_numbers(P3dGroup *group, const int64_t *own, size_t n, int64_t *all) {
  return guarded([&] {
    auto count = static_cast<int64_t>(n);
    auto in = at::empty({count}, at::kLong), out = at::empty({count * group->world}, at::kLong);
    std::memcpy(in.data_ptr<int64_t>(), own, n * sizeof(int64_t));
    group->collective("agreeing", [&] { P3dGroup::wait(*group->control->_allgather_base(out, in)); });
    std::memcpy(all, out.data_ptr<int64_t>(), n * group->world * sizeof(int64_t));
  });
}

// `n` bytes of every rank, in the order of ranks.
int p3d_group_bytes(P3dGroup *group, const uint8_t *own, size_t n, uint8_t *all) {
  return guarded([&] {
    auto count = static_cast<int64_t>(n);
    auto in = at::empty({count}, at::kByte), out = at::empty({count * group->world}, at::kByte);
    std::memcpy(in.data_ptr<uint8_t>(), own, n);
    group->collective("exchanging", [&] { P3dGroup::wait(*group->control->_allgather_base(out, in)); });
    std::memcpy(all, out.data_ptr<uint8_t>(), n * group->world);
  });
}

// `rows`: of every rank.
int p3d_group_gather(P3dGroup *group, at::Tensor *x, const int64_t *rows, at::Tensor *out) {
  return guarded([&] { *out = Gather::apply(*x, shared(group), std::vector<int64_t>(rows, rows + group->world)); });
}

int p3d_group_sum(P3dGroup *group, at::Tensor *x, at::Tensor *out) {
  return guarded([&] { *out = Sum::apply(*x, shared(group)); });
}

int p3d_group_broadcast(P3dGroup *group, at::Tensor *const *tensors, size_t n) {
  return guarded([&] {
    at::NoGradGuard guard;
    std::vector<at::Tensor> targets = list(tensors, n), sent;
    Works works;
    group->collective("broadcasting", [&] {
      for (auto &target : targets) {
        sent.push_back(group->sendable(target.detach()));
        std::vector<at::Tensor> one{sent.back()};
        works.push_back(group->backend(sent.back()).broadcast(one));
      }
      for (auto &work : works) P3dGroup::wait(*work);
    });
    for (size_t i = 0; i < n; i++)
      if (!sent[i].is_alias_of(targets[i])) targets[i].copy_(sent[i]);
  });
}
}
