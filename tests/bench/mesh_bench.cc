// Tokens per second with experts in this process and in an expert service of
// its own, reached by shared memory and over gRPC; and one dispatch against a
// raw TCP ping-pong of the same bytes.
//   mesh_bench [CHECKPOINT] [ROUNDS] [bf16|int8|int4]

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "tests/bench/answer_waiter.h"
#include "tests/bench/measure.h"
#include "tests/bench/model_steps.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

// One batch of `num_tokens` rows for one expert, there and back, with a thread
// that waits as the dispatcher does. Adds what the expert computed for.
double DispatchSeconds(RemoteModel* remote, int64_t num_tokens,
                       std::vector<double>* computed_us) {
  const ModelConfig& config = remote->model->config();
  int64_t layer = 0;
  while (!config.layers[layer].is_moe) ++layer;
  const DType dtype = DType::kBF16;
  const size_t bytes = num_tokens * config.hidden_size * DTypeBytes(dtype);
  static PayloadPool pool;
  std::vector<uint32_t> row_token(num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) {
    row_token[i] = static_cast<uint32_t>(i);
  }
  const std::vector<uint32_t> expert_ids = {0};
  const std::vector<uint32_t> offsets = {0, static_cast<uint32_t>(num_tokens)};
  Buffer rows_out(bytes);
  router::ExpertBatch batch;
  batch.layer = static_cast<uint32_t>(layer);
  batch.dtype = dtype;
  batch.hidden_size = static_cast<uint32_t>(config.hidden_size);
  batch.num_tokens = static_cast<uint32_t>(num_tokens);
  batch.hidden_states = pool.Acquire(bytes);
  std::fill_n(batch.hidden_states.data(), bytes, std::byte{0});
  batch.expert_ids = expert_ids;
  batch.group_offsets = offsets;
  batch.row_token = row_token;
  AnswerWaiter waiter(rows_out.data(), num_tokens);
  router::ExpertTransport* transport = remote->endpoints->transport();
  const double seconds = Seconds([&] {
    transport->Send(0, batch, &waiter);
    transport->AwaitBriefly([&] { return waiter.IsDone(); });
    if (const absl::Status status = waiter.Await(); !status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
  });
  computed_us->push_back(absl::ToDoubleMicroseconds(waiter.computed()));
  return seconds;
}

void ReadFully(int socket, std::vector<char>* bytes) {
  for (size_t at = 0; at < bytes->size();) {
    const ssize_t n = read(socket, bytes->data() + at, bytes->size() - at);
    if (n <= 0) std::exit(1);
    at += static_cast<size_t>(n);
  }
}

void WriteFully(int socket, const std::vector<char>& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = write(socket, bytes.data() + at, bytes.size() - at);
    if (n <= 0) std::exit(1);
    at += static_cast<size_t>(n);
  }
}

// Two connected TCP sockets over loopback, and a thread that echoes.
class TcpEcho {
 public:
  explicit TcpEcho(size_t bytes) : bytes_(bytes) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    bind(listener, reinterpret_cast<sockaddr*>(&address), length);
    listen(listener, 1);
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    client_ = socket(AF_INET, SOCK_STREAM, 0);
    connect(client_, reinterpret_cast<sockaddr*>(&address), length);
    server_ = accept(listener, nullptr, nullptr);
    close(listener);
    const int on = 1;
    setsockopt(client_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(server_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    thread_ = std::thread([this] {
      std::vector<char> buffer(bytes_.size());
      while (true) {
        for (size_t at = 0; at < buffer.size();) {
          const ssize_t n =
              read(server_, buffer.data() + at, buffer.size() - at);
          if (n <= 0) return;
          at += static_cast<size_t>(n);
        }
        WriteFully(server_, buffer);
      }
    });
  }
  ~TcpEcho() {
    shutdown(client_, SHUT_RDWR);
    thread_.join();
    close(client_);
    close(server_);
  }
  double RoundTripSeconds() {
    return Seconds([this] {
      WriteFully(client_, bytes_);
      ReadFully(client_, &bytes_);
    });
  }

 private:
  std::vector<char> bytes_;
  int client_;
  int server_;
  std::thread thread_;
};

void CompareDispatch(RemoteModel* near, RemoteModel* far, int64_t num_tokens) {
  const size_t bytes =
      num_tokens * near->model->config().hidden_size * DTypeBytes(DType::kBF16);
  TcpEcho echo(bytes);
  std::vector<double> memory, grpc, raw, computed, ignored;
  for (int i = 0; i < 2000; ++i) {
    memory.push_back(DispatchSeconds(near, num_tokens, &computed) * 1e6);
    grpc.push_back(DispatchSeconds(far, num_tokens, &ignored) * 1e6);
    raw.push_back(echo.RoundTripSeconds() * 1e6);
  }
  std::printf(
      "dispatch of %zu bytes: %.0f us by shared memory, %.0f us over gRPC, "
      "%.0f us of it computed; raw TCP: %.0f us; ratio %.2f, %.2f\n",
      bytes, Median(memory), Median(grpc), Median(computed), Median(raw),
      Median(memory) / Median(raw), Median(grpc) / Median(raw));
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "mesh_bench: %s\n", status.ToString().c_str());
  return 1;
}

int Main(const std::string& directory, int rounds, const std::string& format) {
  const absl::StatusOr<WeightFormat> parsed = ParseWeightFormat(format);
  if (!parsed.ok()) return Fail(parsed.status());
  const LocalModelOptions options = BenchOptions(32, *parsed);
  const auto local = LocalModel::Load(directory, options);
  if (!local.ok()) return Fail(local.status());
  const auto near = RemoteModel::Load(directory, options, 1);
  if (!near.ok()) return Fail(near.status());
  const auto far =
      RemoteModel::Load(directory, options, 1, /*shared_memory=*/false);
  if (!far.ok()) return Fail(far.status());
  CompareSpeeds({{"one process", local->get()},
                 {"shared memory", (*near)->model.get()},
                 {"gRPC", (*far)->model.get()}},
                rounds);
  const int64_t token_bytes = (*local)->config().hidden_size * 2;
  for (const int64_t bytes : {4096, 131072}) {
    CompareDispatch(near->get(), far->get(),
                    std::max<int64_t>(1, bytes / token_bytes));
  }
  return 0;
}

}  // namespace
}  // namespace expertmesh::testing

int main(int argc, char** argv) {
  return expertmesh::testing::Main(
      argc > 1 ? argv[1] : EXPERTMESH_SOURCE_DIR "/deploy/demo_model",
      argc > 2 ? std::atoi(argv[2]) : 9, argc > 3 ? argv[3] : "bf16");
}
