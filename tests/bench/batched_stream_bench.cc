// One message with all rows of a layer on the long-lived stream, against one
// unary call for each expert: the same rows, through the same expert service.
//   batched_stream_bench [CHECKPOINT] [ROUNDS]
// Every token goes to top_k experts. The calls are under way together and are
// taken by the thread that waits; to the service each is a stream of one batch.
// Rounds alternate between the two; beside them the experts alone, in this
// process.

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router_service/transport/channel.h"
#include "services/core/status_macros.h"
#include "services/wire/batch_codec.h"
#include "tests/bench/answer_waiter.h"
#include "tests/bench/measure.h"
#include "tests/bench/model_steps.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

constexpr char kForward[] = "/expertmesh.expert.v1.ExpertService/Forward";
constexpr DType kType = DType::kBF16;

void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "batched_stream_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

// Rows of one layer, by expert.
struct Rows {
  Rows(const ModelConfig& config, int64_t num_tokens)
      : row_bytes(config.hidden_size * DTypeBytes(kType)),
        num_tokens(num_tokens),
        hidden_states(num_tokens * row_bytes) {
    while (!config.layers[layer].is_moe) ++layer;
    std::fill_n(hidden_states.data(), num_tokens * row_bytes, std::byte{0x11});
    std::mt19937 random(1);
    std::vector<int64_t> experts(config.num_experts);
    for (int64_t e = 0; e < config.num_experts; ++e) experts[e] = e;
    std::vector<std::vector<uint32_t>> tokens_of(config.num_experts);
    for (int64_t token = 0; token < num_tokens; ++token) {
      std::shuffle(experts.begin(), experts.end(), random);
      for (int64_t k = 0; k < config.top_k; ++k) {
        tokens_of[experts[k]].push_back(static_cast<uint32_t>(token));
      }
    }
    for (int64_t e = 0; e < config.num_experts; ++e) {
      if (tokens_of[e].empty()) continue;
      expert_ids.push_back(static_cast<uint32_t>(e));
      row_token.insert(row_token.end(), tokens_of[e].begin(),
                       tokens_of[e].end());
      group_offsets.push_back(static_cast<uint32_t>(row_token.size()));
    }
  }
  size_t num_groups() const { return expert_ids.size(); }

  const size_t row_bytes;
  const int64_t num_tokens;
  int64_t layer = 0;
  Buffer hidden_states;  // [num_tokens, hidden_size]
  std::vector<uint32_t> expert_ids;
  std::vector<uint32_t> group_offsets = {0};
  std::vector<uint32_t> row_token;
};

// All rows in one batch of a transport.
double BatchSeconds(const Rows& rows, router::ExpertTransport* transport,
                    PayloadPool* pool, std::byte* out) {
  return Seconds([&] {
    router::ExpertBatch batch;
    batch.layer = static_cast<uint32_t>(rows.layer);
    batch.dtype = kType;
    batch.hidden_size =
        static_cast<uint32_t>(rows.row_bytes / DTypeBytes(kType));
    batch.num_tokens = static_cast<uint32_t>(rows.num_tokens);
    batch.hidden_states = pool->Acquire(rows.num_tokens * rows.row_bytes);
    std::memcpy(batch.hidden_states.data(), rows.hidden_states.data(),
                rows.num_tokens * rows.row_bytes);
    batch.expert_ids = rows.expert_ids;
    batch.group_offsets = rows.group_offsets;
    batch.row_token = rows.row_token;
    AnswerWaiter waiter(out, batch.num_rows());
    transport->Send(0, batch, &waiter);
    OrDie(waiter.Await());
  });
}

// A unary call for each expert, all under way together.
class UnaryCalls {
 public:
  UnaryCalls(const std::string& address, size_t most)
      : stub_(router::MakeExpertChannel(address, /*tls=*/nullptr)) {
    for (size_t i = 0; i < most; ++i) row_token_.push_back(i);
  }
  ~UnaryCalls() { queue_.Shutdown(); }

  double RoundTripSeconds(const Rows& rows, std::byte* out) {
    return Seconds([&] {
      calls_.resize(rows.num_groups());
      for (size_t group = 0; group < calls_.size(); ++group) {
        Start(rows, group);
      }
      for (size_t left = calls_.size(); left > 0; --left) {
        void* tag = nullptr;
        bool ok = false;
        queue_.Next(&tag, &ok);
        Finish(rows, static_cast<Call*>(tag), out);
      }
      calls_.clear();
    });
  }

 private:
  struct Call {
    size_t group = 0;
    grpc::ClientContext context;
    grpc::ByteBuffer request, response;
    grpc::Status status;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
  };

  void Start(const Rows& rows, size_t group) {
    Call& call = calls_[group];
    call.group = group;
    const uint32_t first = rows.group_offsets[group];
    const uint32_t num_rows = rows.group_offsets[group + 1] - first;
    const PayloadRef payload = pool_.Acquire(num_rows * rows.row_bytes);
    for (uint32_t row = 0; row < num_rows; ++row) {
      std::memcpy(payload.data() + row * rows.row_bytes,
                  rows.hidden_states.data() +
                      rows.row_token[first + row] * rows.row_bytes,
                  rows.row_bytes);
    }
    const uint32_t offsets[] = {0, num_rows};
    OrDie(EncodeBatch(
        {.sequence_number = group,
         .layer = static_cast<uint32_t>(rows.layer),
         .dtype = kType,
         .hidden_size =
             static_cast<uint32_t>(rows.row_bytes / DTypeBytes(kType)),
         .num_tokens = num_rows,
         .expert_ids = absl::MakeConstSpan(rows.expert_ids).subspan(group, 1),
         .group_offsets = offsets,
         .row_token = absl::MakeConstSpan(row_token_).first(num_rows)},
        payload, &call.request));
    call.reader =
        stub_.PrepareUnaryCall(&call.context, kForward, call.request, &queue_);
    call.reader->StartCall();
    call.reader->Finish(&call.response, &call.status, &call);
  }

  void Finish(const Rows& rows, Call* call, std::byte* out) {
    if (!call->status.ok()) {
      OrDie(absl::UnavailableError(call->status.error_message()));
    }
    OrDie(result_.Decode(call->response));
    const uint32_t first = rows.group_offsets[call->group];
    OrDie(result_.CheckShape(
        {.num_rows = rows.group_offsets[call->group + 1] - first,
         .hidden_size =
             static_cast<uint32_t>(rows.row_bytes / DTypeBytes(kType)),
         .dtype = kType}));
    result_.CopyRows(out + first * rows.row_bytes);
    result_.ReleasePayload();
  }

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  PayloadPool pool_;
  std::deque<Call> calls_;
  std::vector<uint32_t> row_token_;  // 0, 1, …
  DecodedResult result_;
};

void Compare(int64_t num_tokens, int rounds, RemoteModel* remote,
             LocalModel* local) {
  const Rows rows(remote->model->config(), num_tokens);
  const size_t bytes = rows.row_token.size() * rows.row_bytes;
  Buffer streamed(bytes), called(bytes);
  PayloadPool pool;
  UnaryCalls calls(remote->processes->addresses()[0], num_tokens);
  std::vector<double> alone, stream, unary, ratio;
  for (int round = -20; round < rounds; ++round) {
    const double a = BatchSeconds(rows, local->local_transport.get(), &pool,
                                  streamed.data());
    const double s = BatchSeconds(rows, remote->endpoints->transport(), &pool,
                                  streamed.data());
    const double u = calls.RoundTripSeconds(rows, called.data());
    if (std::memcmp(streamed.data(), called.data(), bytes) != 0) {
      OrDie(absl::InternalError("the two gave different rows"));
    }
    if (round < 0) continue;  // warms up
    alone.push_back(a * 1e6);
    stream.push_back(s * 1e6);
    unary.push_back(u * 1e6);
    ratio.push_back(u / s);
  }
  std::printf("%6ld %6zu %7zu %9zu %9zu %12.0f %12.0f %12.0f %7.2f\n",
              static_cast<long>(num_tokens), rows.row_token.size(),
              rows.num_groups(), num_tokens * rows.row_bytes, bytes,
              Median(alone), Median(stream), Median(unary), Median(ratio));
  std::fflush(stdout);
}

absl::Status Run(const std::string& directory, int rounds) {
  const LocalModelOptions options = BenchOptions(1);
  ASSIGN_OR_RETURN(const auto remote, RemoteModel::Load(directory, options, 1));
  ASSIGN_OR_RETURN(const auto local, LocalModel::Load(directory, options));
  std::printf(
      "                        request bytes            us for a layer\n"
      "tokens   rows experts    stream     calls      experts       stream "
      "       calls   ratio\n");
  for (const int64_t tokens : {1, 16, 128}) {
    Compare(tokens, rounds, remote.get(), local.get());
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace expertmesh::testing

int main(int argc, char** argv) {
  expertmesh::testing::OrDie(expertmesh::testing::Run(
      argc > 1 ? argv[1] : EXPERTMESH_SOURCE_DIR "/deploy/demo_model",
      argc > 2 ? std::atoi(argv[2]) : 300));
  return 0;
}
