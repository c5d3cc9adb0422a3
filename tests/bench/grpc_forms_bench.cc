// Which form of gRPC carries expert batches best? Round trips of one payload on
// one long-lived stream of Forward over ByteBuffer, for each pair of client and
// server form, against the same bytes on a raw TCP connection. Servers are
// processes of their own, reached over loopback. Median and 99th percentile
// are counters of each benchmark.

#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/client_callback.h>
#include <grpcpp/impl/codegen/method_handler.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "services/core/mutex.h"

namespace expertmesh {
namespace {

using expert::v1::ExpertService;
using grpc::ByteBuffer;

constexpr char kMethod[] = "/expertmesh.expert.v1.ExpertService/Forward";
constexpr int kMaxMessageBytes = 256 << 20;

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::abort();
}

// --- Servers: each echoes what it is sent. ---------------------------------

void ServeGrpc(grpc::ServerBuilder& builder,
               const std::function<void(int)>& report,
               const std::function<void()>& loop) {
  int port = 0;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  report(port);
  loop();
  server->Wait();
}

class BlockingService : public grpc::Service {
 public:
  BlockingService() {
    AddMethod(new grpc::internal::RpcServiceMethod(
        kMethod, grpc::internal::RpcMethod::BIDI_STREAMING,
        new grpc::internal::BidiStreamingHandler<BlockingService, ByteBuffer,
                                                 ByteBuffer>(
            [](BlockingService*, grpc::ServerContext*,
               grpc::ServerReaderWriter<ByteBuffer, ByteBuffer>* stream) {
              for (ByteBuffer bytes; stream->Read(&bytes);) {
                stream->Write(bytes);
              }
              return grpc::Status::OK;
            },
            this)));
  }
};

void ServeBlocking(const std::function<void(int)>& report) {
  BlockingService service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  ServeGrpc(builder, report, [] {});
}

class CallbackService : public ExpertService::WithRawCallbackMethod_Forward<
                            ExpertService::Service> {
  class Echo : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
   public:
    Echo() { StartRead(&bytes_); }
    void OnReadDone(bool ok) override {
      if (ok) {
        StartWrite(&bytes_);
      } else {
        Finish(grpc::Status::OK);
      }
    }
    void OnWriteDone(bool ok) override {
      if (ok) StartRead(&bytes_);
    }
    void OnDone() override { delete this; }

   private:
    ByteBuffer bytes_;
  };

  grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* Forward(
      grpc::CallbackServerContext*) override {
    return new Echo;
  }
};

void ServeCallback(const std::function<void(int)>& report) {
  CallbackService service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  ServeGrpc(builder, report, [] {});
}

using QueueService =
    ExpertService::WithRawMethod_Forward<ExpertService::Service>;

// One stream after the other, driven by one thread.
void EchoFromQueue(QueueService& service, grpc::ServerCompletionQueue& queue) {
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  while (true) {
    grpc::ServerContext context;
    grpc::ServerAsyncReaderWriter<ByteBuffer, ByteBuffer> stream(&context);
    service.RequestForward(&context, &stream, &queue, &queue, nullptr);
    if (!next()) return;
    ByteBuffer bytes;
    for (stream.Read(&bytes, nullptr); next(); stream.Read(&bytes, nullptr)) {
      stream.Write(bytes, nullptr);
      if (!next()) break;
    }
    stream.Finish(grpc::Status::OK, nullptr);
    next();
  }
}

void ServeQueue(const std::function<void(int)>& report) {
  QueueService service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::ServerCompletionQueue> queue =
      builder.AddCompletionQueue();
  ServeGrpc(builder, report, [&] { EchoFromQueue(service, *queue); });
}

bool ReadAll(int fd, char* out, size_t n) {
  while (n > 0) {
    const ssize_t got = read(fd, out, n);
    if (got <= 0) return false;
    out += got;
    n -= static_cast<size_t>(got);
  }
  return true;
}

bool WriteAll(int fd, const char* from, size_t n) {
  while (n > 0) {
    const ssize_t sent = write(fd, from, n);
    if (sent <= 0) return false;
    from += sent;
    n -= static_cast<size_t>(sent);
  }
  return true;
}

void NoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// The first eight bytes of a connection are the length of its messages.
void ServeTcp(const std::function<void(int)>& report) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = Loopback(0);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener, generic, length) != 0 || listen(listener, 8) != 0) {
    Die("listen");
  }
  getsockname(listener, generic, &length);
  report(ntohs(address.sin_port));
  while (true) {
    const int fd = accept(listener, nullptr, nullptr);
    NoDelay(fd);
    uint64_t size = 0;
    if (ReadAll(fd, reinterpret_cast<char*>(&size), sizeof(size))) {
      std::vector<char> bytes(size);
      while (ReadAll(fd, bytes.data(), size) &&
             WriteAll(fd, bytes.data(), size)) {
      }
    }
    close(fd);
  }
}

// --- Clients: RoundTrip sends the payload and waits for its echo. ----------

class Client {
 public:
  virtual ~Client() = default;
  virtual bool RoundTrip() = 0;
};

class TcpClient : public Client {
 public:
  TcpClient(int port, size_t size) : bytes_(size), echo_(size) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = Loopback(port);
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0) {
      Die("connect");
    }
    NoDelay(fd_);
    const uint64_t length = size;
    WriteAll(fd_, reinterpret_cast<const char*>(&length), sizeof(length));
  }
  ~TcpClient() override { close(fd_); }
  bool RoundTrip() override {
    return WriteAll(fd_, bytes_.data(), bytes_.size()) &&
           ReadAll(fd_, echo_.data(), echo_.size());
  }

 private:
  int fd_;
  std::vector<char> bytes_;
  std::vector<char> echo_;
};

class GrpcClient : public Client {
 public:
  GrpcClient(int port, size_t size) : bytes_(size, 'x') {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // Or channels of one address would share a connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                         grpc::InsecureChannelCredentials(),
                                         arguments);
  }

 protected:
  // A message whose payload is not copied, as in the real codec.
  ByteBuffer Message() const {
    const grpc::Slice slice(bytes_.data(), bytes_.size(),
                            grpc::Slice::STATIC_SLICE);
    return ByteBuffer(&slice, 1);
  }
  bool IsEcho(const ByteBuffer& bytes) const {
    return bytes.Length() == bytes_.size();
  }

  std::string bytes_;
  std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
};

class BlockingClient : public GrpcClient {
 public:
  BlockingClient(int port, size_t size) : GrpcClient(port, size) {
    stream_.reset(
        grpc::internal::ClientReaderWriterFactory<ByteBuffer, ByteBuffer>::
            Create(channel_.get(),
                   grpc::internal::RpcMethod(
                       kMethod, grpc::internal::RpcMethod::BIDI_STREAMING,
                       channel_),
                   &context_));
  }
  ~BlockingClient() override {
    context_.TryCancel();
    stream_->Finish().IgnoreError();
  }
  bool RoundTrip() override {
    ByteBuffer echo;
    return stream_->Write(Message()) && stream_->Read(&echo) && IsEcho(echo);
  }

 private:
  std::unique_ptr<grpc::ClientReaderWriter<ByteBuffer, ByteBuffer>> stream_;
};

// The calling thread polls the queue itself.
class QueueClient : public GrpcClient {
 public:
  QueueClient(int port, size_t size) : GrpcClient(port, size), stub_(channel_) {
    stream_ = stub_.PrepareCall(&context_, kMethod, &queue_);
    stream_->StartCall(nullptr);
    Next();
  }
  ~QueueClient() override {
    context_.TryCancel();
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    Next();
    queue_.Shutdown();
    Next();
  }
  bool RoundTrip() override {
    ByteBuffer echo;
    stream_->Write(Message(), nullptr);
    stream_->Read(&echo, nullptr);
    return Next() && Next() && IsEcho(echo);
  }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

// Hands an echo from the thread that received it to the one that waits.
class Mailbox {
 public:
  void Put(bool ok) {
    MutexLock lock(&mutex_);
    full_ = true;
    ok_ = ok;
    arrived_.NotifyOne();
  }
  bool Take() {
    MutexLock lock(&mutex_);
    arrived_.Wait(lock, [this] { return full_; });
    full_ = false;
    return ok_;
  }

 private:
  Mutex mutex_;
  CondVar arrived_;
  bool full_ = false;
  bool ok_ = false;
};

// A thread of its own polls, as it must when many streams share the queue.
class QueueThreadClient : public GrpcClient {
 public:
  QueueThreadClient(int port, size_t size)
      : GrpcClient(port, size), stub_(channel_) {
    stream_ = stub_.PrepareCall(&context_, kMethod, &queue_);
    stream_->StartCall(&start_);
    thread_ = std::thread([this] { Poll(); });
    mailbox_.Take();
  }
  ~QueueThreadClient() override {
    context_.TryCancel();
    grpc::Status status;
    stream_->Finish(&status, &finish_);
    mailbox_.Take();
    queue_.Shutdown();
    thread_.join();
  }
  bool RoundTrip() override {
    stream_->Write(Message(), &write_);
    // The next write may start only once this one's tag was taken.
    return mailbox_.Take() && IsEcho(taken_) && written_.Take();
  }

 private:
  void Poll() {
    void* tag = nullptr;
    for (bool ok; queue_.Next(&tag, &ok);) {
      if (tag == &start_ || tag == &finish_) mailbox_.Put(ok);
      if (tag == &write_) written_.Put(ok);
      if (tag == &start_) stream_->Read(&echo_, &read_);
      if (tag != &read_ || !ok) continue;
      taken_.Swap(&echo_);
      mailbox_.Put(true);
      stream_->Read(&echo_, &read_);
    }
  }

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  char start_ = 0, read_ = 0, write_ = 0, finish_ = 0;
  ByteBuffer echo_, taken_;
  Mailbox mailbox_, written_;
  std::thread thread_;
};

class CallbackClient : public GrpcClient,
                       public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  CallbackClient(int port, size_t size)
      : GrpcClient(port, size), stub_(channel_) {
    stub_.PrepareBidiStreamingCall(&context_, kMethod, {}, this);
    AddHold();
    StartCall();
    StartRead(&echo_);
  }
  ~CallbackClient() override {
    context_.TryCancel();
    RemoveHold();
    done_.Take();
  }
  bool RoundTrip() override {
    message_ = Message();
    StartWrite(&message_);
    // The message may be replaced only once its write is done.
    return mailbox_.Take() && IsEcho(taken_) && written_.Take();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    taken_.Swap(&echo_);
    mailbox_.Put(true);
    StartRead(&echo_);
  }
  void OnWriteDone(bool ok) override { written_.Put(ok); }
  void OnDone(const grpc::Status&) override { done_.Put(true); }

 private:
  grpc::GenericStub stub_;
  ByteBuffer message_, echo_, taken_;
  Mailbox mailbox_, written_, done_;
};

// --- Benchmarks. -----------------------------------------------------------

template <typename ClientType>
void Measure(benchmark::State& state, int port) {
  using Time = std::chrono::steady_clock;
  ClientType client(port, static_cast<size_t>(state.range(0)));
  for (int i = 0; i < 200; ++i) client.RoundTrip();
  std::vector<double> microseconds;
  microseconds.reserve(1 << 20);
  for (auto _ : state) {
    const auto start = Time::now();
    if (!client.RoundTrip()) {
      state.SkipWithError("the stream broke");
      break;
    }
    microseconds.push_back(
        std::chrono::duration<double, std::micro>(Time::now() - start).count());
  }
  if (microseconds.empty()) return;
  std::sort(microseconds.begin(), microseconds.end());
  state.counters["p50_us"] = microseconds[microseconds.size() / 2];
  state.counters["p99_us"] = microseconds[microseconds.size() * 99 / 100];
}

// Runs `serve` in a child process that dies with this one; returns its port.
// Called before this process touches gRPC, which does not survive a fork.
int StartServer(void (*serve)(const std::function<void(int)>&)) {
  int ends[2];
  if (pipe(ends) != 0) Die("pipe");
  const pid_t child = fork();
  if (child < 0) Die("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve([&](int port) {
      if (write(ends[1], &port, sizeof(port)) != sizeof(port)) Die("write");
    });
    std::exit(0);
  }
  int port = 0;
  if (!ReadAll(ends[0], reinterpret_cast<char*>(&port), sizeof(port))) {
    Die("the server did not start");
  }
  return port;
}

template <typename ClientType>
void Register(const std::string& name, int port) {
  benchmark::RegisterBenchmark(name.c_str(), Measure<ClientType>, port)
      ->Arg(4 << 10)
      ->Arg(128 << 10)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  using namespace expertmesh;  // NOLINT: main of this file only
  const int tcp = StartServer(ServeTcp);
  const std::pair<const char*, int> servers[] = {
      {"blocking", StartServer(ServeBlocking)},
      {"queue", StartServer(ServeQueue)},
      {"callback", StartServer(ServeCallback)}};
  Register<TcpClient>("tcp", tcp);
  for (const auto& [server, port] : servers) {
    const std::string suffix = std::string("_client/") + server + "_server";
    Register<BlockingClient>("blocking" + suffix, port);
    Register<QueueClient>("queue" + suffix, port);
    Register<QueueThreadClient>("queue_thread" + suffix, port);
    Register<CallbackClient>("callback" + suffix, port);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
