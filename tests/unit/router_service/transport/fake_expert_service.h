#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "services/core/mutex.h"
#include "services/wire/link_readers.h"

namespace expertmesh::router {

// Long enough for any machine; nothing waits this long when all is well.
constexpr absl::Duration kPatience = absl::Seconds(30);

// A gRPC server that speaks expert.v1 as the test dictates: it keeps what
// arrives and answers what it is told to. Opens the local links it is offered,
// and answers by the way the last batch came. Thread-safe.
class FakeExpertService {
 public:
  // Port 0: any.
  explicit FakeExpertService(int port = 0);
  // Breaks all streams.
  ~FakeExpertService();

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // Waits until a Forward stream has arrived at this address, and its link, if
  // any, is open.
  static void AwaitForward(const std::string& address);

  // Waits for the next batch. Fails the test when none comes.
  expert::v1::ExpertBatch AwaitBatch();
  // Answers on the newest Forward stream.
  void Reply(const expert::v1::ExpertResult& result);
  void ReplyBytes(const std::string& bytes);
  // Begins a message longer than any may be. Requires: batches come by a link.
  void BeginTooLongReply();
  // The answer of experts that are the identity.
  static expert::v1::ExpertResult RightAnswer(
      const expert::v1::ExpertBatch& batch);

  bool LastCameByLink();

  // Ends the Forward streams that are open, and refuses new ones while not OK.
  void EndForward(const grpc::Status& status);

  // Sends this on all WatchState streams, at once and to new ones.
  void SetState(const expert::v1::EndpointState& state);
  // Sends this on new WatchState streams only; the others fall silent.
  void SetStateOfNewWatches(const expert::v1::EndpointState& state);

 private:
  class Service;
  using Stream = grpc::ServerReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

  grpc::Status Forward(grpc::ServerContext* context, Stream* stream);
  void OnBytes(const grpc::ByteBuffer& bytes, bool is_by_link);
  grpc::Status WatchState(
      grpc::ServerContext* context,
      grpc::ServerWriter<expert::v1::EndpointState>* writer);

  Mutex mutex_;
  CondVar changed_;
  std::deque<expert::v1::ExpertBatch> batches_ ABSL_GUARDED_BY(mutex_);
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::shared_ptr<LocalLink> link_ ABSL_GUARDED_BY(mutex_);
  bool is_by_link_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ServerContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  grpc::Status forward_status_ ABSL_GUARDED_BY(mutex_);
  expert::v1::EndpointState state_ ABSL_GUARDED_BY(mutex_);
  int state_version_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  int port_ = 0;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace expertmesh::router
