#include "router_service/transport/grpc_expert_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "services/wire/payload_pool.h"
#include "tests/unit/router_service/transport/fake_expert_service.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint32_t kHidden = 3;

// A batch of two experts and three rows with all it points to, and its end.
class TestBatch : public BatchCompletion {
 public:
  explicit TestBatch(PayloadPool& pool, float seed = 1) {
    batch_.layer = 4;
    batch_.hidden_size = kHidden;
    batch_.num_tokens = 2;
    batch_.hidden_states = pool.Acquire(2 * kHidden * sizeof(float));
    for (uint32_t i = 0; i < 2 * kHidden; ++i) {
      tokens_.push_back(seed + static_cast<float>(i));
    }
    std::memcpy(batch_.hidden_states.data(), tokens_.data(),
                tokens_.size() * sizeof(float));
    batch_.expert_ids = expert_ids_;
    batch_.group_offsets = group_offsets_;
    batch_.row_token = row_token_;
  }

  void Done(const BatchAnswer& answer) override {
    if (answer.status.ok()) {
      answer.rows->Copy(0, row_token_.size(),
                        reinterpret_cast<std::byte*>(rows_.data()));
    }
    MutexLock lock(&mutex_);
    status_ = answer.status;
    ++times_done_;
    changed_.NotifyAll();
  }

  // The outcome; checks that there is just one so far.
  absl::Status Await() {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(
        changed_.WaitFor(lock, kPatience, [&] { return times_done_ > 0; }));
    EXPECT_EQ(times_done_, 1);
    return status_;
  }
  bool is_done() {
    MutexLock lock(&mutex_);
    return times_done_ > 0;
  }

  ExpertBatch& batch() { return batch_; }
  bool HasRightRows() const {
    for (size_t r = 0; r < row_token_.size(); ++r) {
      if (!std::equal(rows_.begin() + r * kHidden,
                      rows_.begin() + (r + 1) * kHidden,
                      tokens_.begin() + row_token_[r] * kHidden)) {
        return false;
      }
    }
    return true;
  }
  bool IsUntouched() const {
    return std::all_of(rows_.begin(), rows_.end(),
                       [](float x) { return x == 0; });
  }

 private:
  const std::vector<uint32_t> expert_ids_ = {1, 6};
  const std::vector<uint32_t> group_offsets_ = {0, 2, 3};
  const std::vector<uint32_t> row_token_ = {0, 1, 0};
  std::vector<float> tokens_;
  std::vector<float> rows_ = std::vector<float>(3 * kHidden, 0.0f);
  ExpertBatch batch_;
  Mutex mutex_;
  CondVar changed_;
  absl::Status status_;
  int times_done_ = 0;
};

// A transport to some fakes, and what it said about their streams.
class Harness {
 public:
  Harness(bool shared_memory, const std::vector<std::string>& addresses,
          TransportMetrics metrics = {}) {
    GrpcExpertTransport::Options options;
    options.shared_memory = shared_memory;
    options.metrics = std::move(metrics);
    options.on_stream_change = [this](int endpoint, const absl::Status& s) {
      MutexLock lock(&mutex_);
      is_open_[endpoint] = s.ok();
      changed_.NotifyAll();
    };
    options.on_gone = [this](int endpoint) {
      MutexLock lock(&mutex_);
      gone_.insert(endpoint);
      changed_.NotifyAll();
    };
    transport_ = std::make_unique<GrpcExpertTransport>(std::move(options));
    for (const std::string& address : addresses) Add(address);
  }

  int Add(const std::string& address) {
    MutexLock lock(&mutex_);
    const int endpoint = transport_->Add("pool", address);
    is_open_.resize(endpoint + 1);
    addresses_.resize(endpoint + 1);
    addresses_[endpoint] = address;
    return endpoint;
  }

  void AwaitStream(int endpoint, bool is_open) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience,
                                 [&] { return is_open_[endpoint] == is_open; }))
        << "stream " << endpoint << (is_open ? " stays closed" : " stays open");
    if (is_open) FakeExpertService::AwaitForward(addresses_[endpoint]);
  }
  void AwaitGone(int endpoint) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, kPatience,
                                 [&] { return gone_.count(endpoint) > 0; }));
  }
  bool IsGone(int endpoint) {
    MutexLock lock(&mutex_);
    return gone_.count(endpoint) > 0;
  }
  void Send(TestBatch& batch, int endpoint = 0) {
    transport_->Send(endpoint, batch.batch(), &batch);
  }
  GrpcExpertTransport& transport() { return *transport_; }
  void Stop() { transport_.reset(); }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<bool> is_open_;
  std::vector<std::string> addresses_;
  std::set<int> gone_;
  std::unique_ptr<GrpcExpertTransport> transport_;
};

// Over gRPC alone, and with a local link beside it.
class GrpcExpertTransportTest : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(, GrpcExpertTransportTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& param) {
                           return param.param ? "SharedMemory" : "Grpc";
                         });

TEST_P(GrpcExpertTransportTest, ManyInFlightAnsweredInAnyOrder) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  std::vector<std::unique_ptr<TestBatch>> batches;
  for (int round = 0; round < 3; ++round) {
    batches.clear();
    for (int i = 0; i < 50; ++i) {
      batches.push_back(
          std::make_unique<TestBatch>(pool, static_cast<float>(i)));
      harness.Send(*batches.back());
    }
    EXPECT_EQ(harness.transport().inflight_rows(0), 150u);
    std::vector<expert::v1::ExpertBatch> received;
    for (int i = 0; i < 50; ++i) received.push_back(service.AwaitBatch());
    EXPECT_EQ(received[0].layer(), 4u);
    EXPECT_EQ(received[0].timeout_ms(), 0u);
    EXPECT_EQ(service.LastCameByLink(), GetParam());
    std::reverse(received.begin(), received.end());
    for (const auto& batch : received) {
      service.Reply(FakeExpertService::RightAnswer(batch));
    }
    for (const auto& batch : batches) {
      EXPECT_EQ(batch->Await(), absl::OkStatus());
      EXPECT_TRUE(batch->HasRightRows());
    }
  }
  EXPECT_EQ(harness.transport().inflight_rows(0), 0u);
}

TEST_P(GrpcExpertTransportTest, SendsEachEndpointItsOwn) {
  FakeExpertService first, second;
  Harness harness(GetParam(), {first.address(), second.address()});
  harness.AwaitStream(0, true);
  harness.AwaitStream(1, true);
  PayloadPool pool;
  TestBatch a(pool, 1), b(pool, 100);
  harness.Send(a, 0);
  harness.Send(b, 1);
  second.Reply(FakeExpertService::RightAnswer(second.AwaitBatch()));
  EXPECT_EQ(b.Await(), absl::OkStatus());
  EXPECT_TRUE(b.HasRightRows());
  EXPECT_FALSE(a.is_done());
  first.Reply(FakeExpertService::RightAnswer(first.AwaitBatch()));
  EXPECT_EQ(a.Await(), absl::OkStatus());
}

TEST_P(GrpcExpertTransportTest, AnswersOtherThanOk) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  const struct {
    expert::v1::Code code;
    absl::StatusCode expected;
  } cases[] = {
      {expert::v1::CODE_NOT_HOSTED, absl::StatusCode::kFailedPrecondition},
      {expert::v1::CODE_RESOURCE_EXHAUSTED,
       absl::StatusCode::kResourceExhausted},
      {expert::v1::CODE_DEADLINE_EXCEEDED, absl::StatusCode::kDeadlineExceeded},
      {expert::v1::CODE_UNAVAILABLE, absl::StatusCode::kUnavailable},
      {expert::v1::CODE_INVALID_ARGUMENT, absl::StatusCode::kInternal},
      {expert::v1::CODE_INTERNAL, absl::StatusCode::kInternal},
      {expert::v1::CODE_UNSPECIFIED, absl::StatusCode::kInternal}};
  for (const auto& c : cases) {
    TestBatch batch(pool);
    harness.Send(batch);
    expert::v1::ExpertResult result;
    result.set_sequence_number(service.AwaitBatch().sequence_number());
    result.set_code(c.code);
    result.set_message("because");
    service.Reply(result);
    const absl::Status status = batch.Await();
    EXPECT_EQ(status.code(), c.expected);
    EXPECT_THAT(std::string(status.message()), HasSubstr(service.address()));
    EXPECT_THAT(std::string(status.message()), HasSubstr("because"));
    EXPECT_TRUE(batch.IsUntouched());
  }
}

TEST_P(GrpcExpertTransportTest, ADeadPeerFailsWhatIsInFlight) {
  auto service = std::make_unique<FakeExpertService>();
  const int port = service->port();
  Harness harness(GetParam(), {service->address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch first(pool), second(pool), late(pool), again(pool);
  harness.Send(first);
  harness.Send(second);
  service->AwaitBatch();
  service.reset();
  for (TestBatch* batch : {&first, &second}) {
    const absl::Status status = batch->Await();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("127.0.0.1:" + std::to_string(port)));
  }
  harness.AwaitStream(0, false);
  harness.Send(late);
  EXPECT_EQ(late.Await().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(harness.transport().inflight_rows(0), 0u);

  // Back on the same port, it is found again.
  FakeExpertService reborn(port);
  harness.AwaitStream(0, true);
  harness.Send(again);
  reborn.Reply(FakeExpertService::RightAnswer(reborn.AwaitBatch()));
  EXPECT_EQ(again.Await(), absl::OkStatus());
  EXPECT_TRUE(again.HasRightRows());
}

TEST_P(GrpcExpertTransportTest, AnEndpointThatIsNotThereYet) {
  auto placeholder = std::make_unique<FakeExpertService>();
  const int port = placeholder->port();
  placeholder.reset();
  Harness harness(GetParam(), {"127.0.0.1:" + std::to_string(port)});
  PayloadPool pool;
  TestBatch early(pool), late(pool);
  harness.Send(early);
  EXPECT_EQ(early.Await().code(), absl::StatusCode::kUnavailable);
  FakeExpertService service(port);
  harness.AwaitStream(0, true);
  harness.Send(late);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(late.Await(), absl::OkStatus());
}

TEST_P(GrpcExpertTransportTest, AnExpiredBatchIsNotWrittenByALateAnswer) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch slow(pool), next(pool);
  slow.batch().timeout = absl::Milliseconds(30);
  slow.batch().deadline = absl::Milliseconds(20);
  harness.Send(slow);
  const expert::v1::ExpertBatch received = service.AwaitBatch();
  EXPECT_EQ(received.timeout_ms(), 20u);
  const absl::Status status = slow.Await();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr(service.address()));

  // The answers come in order, so once the second is there, the first was.
  harness.Send(next);
  service.Reply(FakeExpertService::RightAnswer(received));
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(next.Await(), absl::OkStatus());
  EXPECT_EQ(slow.Await(), status);  // still told once
  EXPECT_TRUE(slow.IsUntouched());
}

TEST_P(GrpcExpertTransportTest, NoTimeLeft) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch batch(pool);
  batch.batch().timeout = absl::ZeroDuration();
  harness.Send(batch);
  EXPECT_EQ(batch.Await().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(GrpcExpertTransportTest, AnAnswerOfTheWrongShapeFailsItsBatchOnly) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  using Result = expert::v1::ExpertResult;
  void (*const changes[])(Result&) = {
      [](Result& r) { r.set_num_rows(2); },
      [](Result& r) { r.set_hidden_size(4); },
      [](Result& r) { r.set_data_type(expert::v1::DATA_TYPE_BF16); },
      [](Result& r) { r.mutable_hidden_states()->pop_back(); },
      [](Result& r) { r.mutable_hidden_states()->append(4, 'x'); },
      [](Result& r) { r.clear_hidden_states(); },
      [](Result& r) { r.set_num_sums(1); },
      [](Result& r) { r.set_partial_sums("1234"); }};
  for (const auto& change : changes) {
    TestBatch wrong(pool), right(pool);
    harness.Send(wrong);
    harness.Send(right);
    Result result = FakeExpertService::RightAnswer(service.AwaitBatch());
    change(result);
    service.Reply(result);
    const absl::Status status = wrong.Await();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr(service.address()));
    EXPECT_TRUE(wrong.IsUntouched());
    service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
    EXPECT_EQ(right.Await(), absl::OkStatus());
  }
}

TEST_P(GrpcExpertTransportTest, GarbageEndsTheStreamAndItIsOpenedAgain) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch batch(pool), again(pool);
  harness.Send(batch);
  service.AwaitBatch();
  service.ReplyBytes("\xff\xff\xff not a message");
  const absl::Status status = batch.Await();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr(service.address()));
  harness.AwaitStream(0, false);
  harness.AwaitStream(0, true);
  harness.Send(again);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(again.Await(), absl::OkStatus());
}

TEST(GrpcExpertTransport, ALinkInDisorderEndsTheStreamAndItIsOpenedAgain) {
  FakeExpertService service;
  Harness harness(/*shared_memory=*/true, {service.address()});
  PayloadPool pool;
  // As the first of all messages, and after a good one.
  for (const bool is_answered : {false, true}) {
    harness.AwaitStream(0, true);
    TestBatch good(pool), first(pool), second(pool), again(pool);
    if (is_answered) {
      harness.Send(good);
      service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
      EXPECT_EQ(good.Await(), absl::OkStatus());
    }
    harness.Send(first);
    harness.Send(second);
    service.AwaitBatch();
    service.AwaitBatch();
    service.BeginTooLongReply();
    for (TestBatch* batch : {&first, &second}) {
      const absl::Status status = batch->Await();
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("disorder"));
      EXPECT_TRUE(batch->IsUntouched());
    }
    harness.AwaitStream(0, false);
    harness.AwaitStream(0, true);
    harness.Send(again);
    service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
    EXPECT_EQ(again.Await(), absl::OkStatus());
    EXPECT_TRUE(again.HasRightRows());
  }
}

TEST_P(GrpcExpertTransportTest, ANumberThatWasNeverSentEndsTheStream) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  for (const uint64_t number : {uint64_t{0}, ~uint64_t{0}}) {
    TestBatch batch(pool);
    harness.Send(batch);
    auto result = FakeExpertService::RightAnswer(service.AwaitBatch());
    result.set_sequence_number(number);
    service.Reply(result);
    EXPECT_EQ(batch.Await().code(), absl::StatusCode::kInternal);
    EXPECT_TRUE(batch.IsUntouched());
    harness.AwaitStream(0, false);
    harness.AwaitStream(0, true);
  }
}

TEST_P(GrpcExpertTransportTest, ASecondAnswerIsIgnored) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch first(pool), second(pool);
  harness.Send(first);
  const auto result = FakeExpertService::RightAnswer(service.AwaitBatch());
  harness.Send(second);
  service.Reply(result);
  service.Reply(result);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(second.Await(), absl::OkStatus());
  EXPECT_EQ(first.Await(), absl::OkStatus());
}

TEST_P(GrpcExpertTransportTest, ABatchThatCannotTravelIsRefused) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch batch(pool);
  batch.batch().hidden_states = pool.Acquire(4);
  harness.Send(batch);
  EXPECT_EQ(batch.Await().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(harness.transport().inflight_rows(0), 0u);
}

TEST_P(GrpcExpertTransportTest, ShutdownFailsWhatIsInFlight) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address(), "127.0.0.1:1"});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch first(pool), second(pool);
  harness.Send(first);
  harness.Send(second);
  service.AwaitBatch();
  harness.Stop();
  EXPECT_TRUE(first.is_done());
  EXPECT_TRUE(second.is_done());
  EXPECT_EQ(first.Await().code(), absl::StatusCode::kUnavailable);
}

TEST_P(GrpcExpertTransportTest, PayloadsReturnToTheirPool) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  std::byte* data = nullptr;
  {
    TestBatch batch(pool);
    data = batch.batch().hidden_states.data();
    harness.Send(batch);
    service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
    EXPECT_EQ(batch.Await(), absl::OkStatus());
  }
  harness.Stop();  // gRPC has let go of everything
  EXPECT_EQ(pool.Acquire(10).data(), data);
}

TEST_P(GrpcExpertTransportTest, CountsRowsAndDurations) {
  prometheus::Registry registry;
  TransportMetrics metrics;
  metrics.inflight_rows =
      &prometheus::BuildGauge().Name("rows").Register(registry);
  metrics.row_seconds =
      &prometheus::BuildCounter().Name("row_seconds").Register(registry);
  metrics.rpc_duration_seconds =
      &prometheus::BuildHistogram().Name("seconds").Register(registry);
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()}, metrics);
  const prometheus::Labels labels = {{"endpoint", service.address()},
                                     {"pool", "pool"}};
  const prometheus::Gauge& rows = metrics.inflight_rows->Add(labels);
  const prometheus::Counter& row_seconds = metrics.row_seconds->Add(labels);
  const prometheus::Histogram& seconds = metrics.rpc_duration_seconds->Add(
      labels, prometheus::Histogram::BucketBoundaries{1});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch batch(pool);
  harness.Send(batch);
  EXPECT_EQ(rows.Value(), 3);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(batch.Await(), absl::OkStatus());
  EXPECT_EQ(rows.Value(), 0);
  const auto histogram = seconds.Collect().histogram;
  EXPECT_EQ(histogram.sample_count, 1u);
  // Three rows for as long as that took, but for the way between two clocks.
  EXPECT_GT(row_seconds.Value(), 0);
  EXPECT_LE(row_seconds.Value(), 3 * histogram.sample_sum);

  harness.transport().Remove(0);
  harness.AwaitGone(0);
  EXPECT_THAT(registry.Collect(), IsEmpty());
  harness.Add(service.address());
  EXPECT_THAT(registry.Collect(), SizeIs(3));
}

TEST_P(GrpcExpertTransportTest, ARemovedEndpointFinishesWhatIsInFlight) {
  FakeExpertService service;
  Harness harness(GetParam(), {service.address()});
  harness.AwaitStream(0, true);
  PayloadPool pool;
  TestBatch first(pool, 1), second(pool, 10), late(pool, 100);
  harness.Send(first);
  harness.Send(second);
  const expert::v1::ExpertBatch a = service.AwaitBatch();
  const expert::v1::ExpertBatch b = service.AwaitBatch();
  harness.transport().Remove(0);
  service.Reply(FakeExpertService::RightAnswer(a));
  EXPECT_EQ(first.Await(), absl::OkStatus());
  EXPECT_FALSE(harness.IsGone(0));
  EXPECT_EQ(harness.transport().inflight_rows(0), 3u);
  service.Reply(FakeExpertService::RightAnswer(b));
  EXPECT_EQ(second.Await(), absl::OkStatus());
  EXPECT_TRUE(second.HasRightRows());
  harness.AwaitGone(0);

  harness.Send(late);
  EXPECT_EQ(late.Await().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(harness.transport().inflight_rows(0), 0u);
  // The address is another endpoint when it comes back.
  EXPECT_EQ(harness.Add(service.address()), 1);
  harness.AwaitStream(1, true);
  TestBatch again(pool);
  harness.Send(again, 1);
  service.Reply(FakeExpertService::RightAnswer(service.AwaitBatch()));
  EXPECT_EQ(again.Await(), absl::OkStatus());
}

TEST_P(GrpcExpertTransportTest, ARemovedEndpointThatFallsSilentIsLetGo) {
  FakeExpertService silent, dying;
  Harness harness(GetParam(), {silent.address(), dying.address()});
  harness.AwaitStream(0, true);
  harness.AwaitStream(1, true);
  PayloadPool pool;
  TestBatch slow(pool), lost(pool);
  slow.batch().timeout = absl::Milliseconds(30);
  harness.Send(slow, 0);
  harness.Send(lost, 1);
  silent.AwaitBatch();
  dying.AwaitBatch();
  harness.transport().Remove(0);
  harness.transport().Remove(1);
  EXPECT_EQ(slow.Await().code(), absl::StatusCode::kDeadlineExceeded);
  harness.AwaitGone(0);
  EXPECT_FALSE(lost.is_done());
  dying.EndForward(grpc::Status::OK);
  EXPECT_EQ(lost.Await().code(), absl::StatusCode::kUnavailable);
  harness.AwaitGone(1);
}

TEST_P(GrpcExpertTransportTest, AnEndpointThatNeverConnectedIsRemoved) {
  Harness harness(GetParam(), {"127.0.0.1:1"});
  harness.transport().Remove(0);
  harness.AwaitGone(0);
  harness.transport().Remove(0);  // nothing is left to remove
}

}  // namespace
}  // namespace expertmesh::router
