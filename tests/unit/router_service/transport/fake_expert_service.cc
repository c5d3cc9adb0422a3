#include "tests/unit/router_service/transport/fake_expert_service.h"

#include <grpcpp/impl/codegen/method_handler.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <vector>

#include "services/wire/batch_codec.h"

namespace expertmesh::router {

using expert::v1::EndpointState;
using expert::v1::ExpertBatch;
using expert::v1::ExpertResult;

namespace {

// The fakes of this process, by address.
Mutex fakes_mutex;
std::map<std::string, FakeExpertService*> fakes ABSL_GUARDED_BY(fakes_mutex);

}  // namespace

// Forward over raw bytes, so that tests can answer with anything.
class FakeExpertService::Service : public grpc::Service {
 public:
  explicit Service(FakeExpertService* fake) {
    using grpc::internal::RpcMethod;
    AddMethod(new grpc::internal::RpcServiceMethod(
        "/expertmesh.expert.v1.ExpertService/Forward",
        RpcMethod::BIDI_STREAMING,
        new grpc::internal::BidiStreamingHandler<Service, grpc::ByteBuffer,
                                                 grpc::ByteBuffer>(
            [fake](Service*, grpc::ServerContext* context, Stream* stream) {
              return fake->Forward(context, stream);
            },
            this)));
    AddMethod(new grpc::internal::RpcServiceMethod(
        "/expertmesh.expert.v1.ExpertService/WatchState",
        RpcMethod::SERVER_STREAMING,
        new grpc::internal::ServerStreamingHandler<
            Service, expert::v1::WatchStateRequest, EndpointState>(
            [fake](Service*, grpc::ServerContext* context,
                   const expert::v1::WatchStateRequest*,
                   grpc::ServerWriter<EndpointState>* writer) {
              return fake->WatchState(context, writer);
            },
            this)));
  }
};

FakeExpertService::FakeExpertService(int port)
    : service_(std::make_unique<Service>(this)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  EXPECT_NE(server_, nullptr);
  MutexLock lock(&fakes_mutex);
  fakes[address()] = this;
}

FakeExpertService::~FakeExpertService() {
  {
    MutexLock lock(&fakes_mutex);
    fakes.erase(address());
  }
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  server_->Shutdown(std::chrono::system_clock::now());
}

grpc::Status FakeExpertService::Forward(grpc::ServerContext* context,
                                        Stream* stream) {
  {
    MutexLock lock(&mutex_);
    if (!forward_status_.ok()) return forward_status_;
  }
  std::shared_ptr<LocalLink> link;
  const auto& metadata = context->client_metadata();
  const auto offer = metadata.find(kLocalLinkMetadata);
  if (offer != metadata.end()) {
    auto opened = LocalLink::Open({offer->second.data(), offer->second.size()});
    // A router that has given the stream up already has taken its offer back.
    if (opened.ok()) link = *std::move(opened);
  }
  std::unique_ptr<LinkReader> reader;
  if (link != nullptr) {
    reader = std::make_unique<LinkReader>(link, [this, link] {
      grpc::ByteBuffer bytes;
      if (link->Read(&bytes) != LocalLink::Received::kMessage) return false;
      OnBytes(bytes, /*is_by_link=*/true);
      return true;
    });
    EXPECT_TRUE(reader->Start().ok());
    link->Accept();
  }
  bool is_refused;  // by an EndForward that came meanwhile
  {
    MutexLock lock(&mutex_);
    is_refused = !forward_status_.ok();
    link_ = link;
    stream_ = stream;
    context_ = context;
    changed_.NotifyAll();
  }
  for (grpc::ByteBuffer bytes; !is_refused && stream->Read(&bytes);) {
    OnBytes(bytes, /*is_by_link=*/false);
  }
  if (reader != nullptr) reader->Stop();
  MutexLock lock(&mutex_);
  if (stream_ == stream) {
    stream_ = nullptr;
    context_ = nullptr;
  }
  return forward_status_;
}

void FakeExpertService::OnBytes(const grpc::ByteBuffer& bytes,
                                bool is_by_link) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string flat;
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  ExpertBatch batch;
  EXPECT_TRUE(batch.ParseFromString(flat));
  MutexLock lock(&mutex_);
  batches_.push_back(std::move(batch));
  is_by_link_ = is_by_link;
  changed_.NotifyAll();
}

bool FakeExpertService::LastCameByLink() {
  MutexLock lock(&mutex_);
  return is_by_link_;
}

void FakeExpertService::AwaitForward(const std::string& address) {
  MutexLock fakes_lock(&fakes_mutex);
  const auto found = fakes.find(address);
  ASSERT_NE(found, fakes.end());
  FakeExpertService* const fake = found->second;
  MutexLock lock(&fake->mutex_);
  EXPECT_TRUE(fake->changed_.WaitFor(lock, kPatience,
                                     [&] { return fake->stream_ != nullptr; }));
}

grpc::Status FakeExpertService::WatchState(
    grpc::ServerContext* context, grpc::ServerWriter<EndpointState>* writer) {
  int written = 0;
  MutexLock lock(&mutex_);
  while (true) {
    // Cancellation is only seen by looking.
    changed_.WaitFor(lock, absl::Milliseconds(10),
                     [&] { return stop_ || state_version_ != written; });
    if (stop_ || context->IsCancelled()) break;
    if (state_version_ == written) continue;
    written = state_version_;
    writer->Write(state_);
  }
  return grpc::Status::OK;
}

ExpertBatch FakeExpertService::AwaitBatch() {
  MutexLock lock(&mutex_);
  if (!changed_.WaitFor(lock, kPatience, [&] { return !batches_.empty(); })) {
    ADD_FAILURE() << "no batch arrived";
    return ExpertBatch();
  }
  ExpertBatch batch = std::move(batches_.front());
  batches_.pop_front();
  return batch;
}

void FakeExpertService::Reply(const ExpertResult& result) {
  ReplyBytes(result.SerializeAsString());
}

void FakeExpertService::ReplyBytes(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  MutexLock lock(&mutex_);
  ASSERT_NE(stream_, nullptr);
  if (is_by_link_) {
    EXPECT_TRUE(link_->Write(grpc::ByteBuffer(&slice, 1)));
  } else {
    stream_->Write(grpc::ByteBuffer(&slice, 1));
  }
}

void FakeExpertService::BeginTooLongReply() {
  constexpr size_t kSliceBytes = size_t{1} << 20;
  const std::vector<grpc::Slice> slices(
      kMaxMessageBytes / kSliceBytes + 1,
      grpc::Slice(std::string(kSliceBytes, 'x')));
  MutexLock lock(&mutex_);
  ASSERT_TRUE(is_by_link_);
  EXPECT_FALSE(link_->Write(grpc::ByteBuffer(slices.data(), slices.size())));
}

ExpertResult FakeExpertService::RightAnswer(const ExpertBatch& batch) {
  ExpertResult result;
  result.set_sequence_number(batch.sequence_number());
  result.set_code(expert::v1::CODE_OK);
  result.set_data_type(batch.data_type());
  result.set_hidden_size(batch.hidden_size());
  result.set_num_rows(batch.row_token_size());
  const size_t stride =
      batch.hidden_size() *
      (batch.data_type() == expert::v1::DATA_TYPE_F32 ? 4 : 2);
  for (const uint32_t token : batch.row_token()) {
    *result.mutable_hidden_states() +=
        batch.hidden_states().substr(token * stride, stride);
  }
  return result;
}

void FakeExpertService::EndForward(const grpc::Status& status) {
  MutexLock lock(&mutex_);
  forward_status_ = status;
  if (context_ != nullptr) context_->TryCancel();
}

void FakeExpertService::SetState(const EndpointState& state) {
  MutexLock lock(&mutex_);
  state_ = state;
  ++state_version_;
  changed_.NotifyAll();
}

void FakeExpertService::SetStateOfNewWatches(const EndpointState& state) {
  MutexLock lock(&mutex_);
  state_ = state;
}

}  // namespace expertmesh::router
