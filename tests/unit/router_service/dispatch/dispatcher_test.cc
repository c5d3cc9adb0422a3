#include "router_service/dispatch/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>

namespace expertmesh::router {
namespace {

constexpr int64_t kHidden = 4;

// Answers each batch at once: the next scripted error, or its tokens echoed.
class ScriptedTransport final : public ExpertTransport {
 public:
  void Send(int, const ExpertBatch& batch,
            BatchCompletion* completion) override {
    ++sent;
    absl::Status status;
    if (!errors.empty()) {
      status = errors.front();
      errors.pop_front();
    }
    constexpr size_t kRowBytes = kHidden * sizeof(float);
    for (size_t row = 0; status.ok() && row < batch.num_rows(); ++row) {
      std::memcpy(batch.rows_out + row * kRowBytes,
                  batch.hidden_states.data() + batch.row_token[row] * kRowBytes,
                  kRowBytes);
    }
    completion->Done(status);
  }

  int sent = 0;
  std::deque<absl::Status> errors;
};

// Three tokens, each a row of expert 0, which is at endpoint 0.
class DispatcherTest : public ::testing::Test {
 protected:
  DispatcherTest() {
    plan_.row_token = {0, 1, 2};
    plan_.row_weight = {1, 1, 1};
    plan_.groups = {{0, 0, 3}};
    plan_.wave_groups = {0, 1};
    for (size_t i = 0; i < hidden_.size(); ++i) {
      hidden_[i] = static_cast<float>(i);
    }
  }

  static DispatcherOptions Options(int64_t max_message_bytes) {
    DispatcherOptions options;
    options.hidden_size = kHidden;
    options.max_tokens = 3;
    options.top_k = 1;
    options.max_message_bytes = max_message_bytes;
    return options;
  }

  void Exchange(Dispatcher* dispatcher, DispatchTicket* ticket) {
    auto placement = std::make_shared<Placement>(1, 1);
    placement->Assign(0, 0, 0);
    dispatcher->Begin(0, hidden_.data(), plan_, std::move(placement), ticket);
    dispatcher->Finish(ticket);
  }

  void ExpectEchoed(const DispatchTicket& ticket) {
    EXPECT_TRUE(ticket.failures().empty());
    for (int row = 0; row < 3; ++row) {
      const auto* values = reinterpret_cast<const float*>(ticket.rows()) +
                           ticket.row_position()[row] * kHidden;
      EXPECT_EQ(values[0], hidden_[row * kHidden]);
    }
  }

  DispatchPlan plan_;
  std::vector<float> hidden_ = std::vector<float>(3 * kHidden);
  ScriptedTransport transport_;
};

TEST_F(DispatcherTest, OneMessageOrPartsByTokenRange) {
  for (const auto& [bytes, messages] :
       {std::pair(1 << 20, 1), {32, 2}, {1, 3}}) {
    Dispatcher dispatcher(Options(bytes), &transport_);
    DispatchTicket ticket(dispatcher.options());
    transport_.sent = 0;
    Exchange(&dispatcher, &ticket);
    EXPECT_EQ(transport_.sent, messages) << bytes;
    ExpectEchoed(ticket);
  }
}

TEST_F(DispatcherTest, ABatchThatAFullQueueRefusedIsSentAgain) {
  Dispatcher dispatcher(Options(1 << 20), &transport_);
  DispatchTicket ticket(dispatcher.options());
  transport_.errors = {absl::ResourceExhaustedError("full"),
                       absl::ResourceExhaustedError("full")};
  Exchange(&dispatcher, &ticket);
  EXPECT_EQ(transport_.sent, 3);
  ExpectEchoed(ticket);
}

TEST_F(DispatcherTest, AnEndpointThatFailedIsNotAskedAgainInTheStep) {
  Dispatcher dispatcher(Options(1 << 20), &transport_);
  DispatchTicket ticket(dispatcher.options());
  transport_.errors = {absl::DeadlineExceededError("stuck")};
  for (int layer = 0; layer < 3; ++layer) {
    Exchange(&dispatcher, &ticket);
    ASSERT_EQ(ticket.failures().size(), 3u);
    EXPECT_EQ(ticket.failures()[0].status.code(),
              absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(transport_.sent, 1);
  dispatcher.BeginStep();
  Exchange(&dispatcher, &ticket);
  EXPECT_EQ(transport_.sent, 2);
  ExpectEchoed(ticket);
}

TEST_F(DispatcherTest, OnlyADeviceFaultKeepsItsCode) {
  Dispatcher dispatcher(Options(1 << 20), &transport_);
  DispatchTicket ticket(dispatcher.options());
  transport_.errors = {absl::FailedPreconditionError("not hosted"),
                       absl::InternalError("device")};
  Exchange(&dispatcher, &ticket);
  EXPECT_EQ(ticket.failures()[0].status.code(), absl::StatusCode::kUnavailable);
  Exchange(&dispatcher, &ticket);
  EXPECT_EQ(ticket.failures()[0].status.code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace expertmesh::router
