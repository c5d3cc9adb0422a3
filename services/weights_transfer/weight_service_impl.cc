#include "services/weights_transfer/weight_service_impl.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/json_reader.h"
#include "services/checkpoint/mapped_file.h"
#include "services/core/status_macros.h"
#include "services/weights_transfer/crc32c.h"
#include "services/wire/status_codec.h"

namespace expertmesh {
namespace {

using expert::v1::Manifest;
using expert::v1::ReadTensorRequest;
using expert::v1::TensorChunk;

absl::string_view Bytes(const std::byte* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Adds a whole file of the folder; one that is missing is left out.
absl::Status AddFile(const std::string& directory, const std::string& name,
                     Manifest* manifest) {
  const absl::StatusOr<MappedFile> file =
      MappedFile::Open(absl::StrCat(directory, "/", name));
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  RETURN_IF_ERROR(file.status());
  const absl::string_view contents = Bytes(file->data(), file->size());
  expert::v1::WholeFile* message = manifest->add_files();
  message->set_name(name);
  message->set_contents(std::string(contents));
  message->set_crc32c(Crc32c(contents));
  return absl::OkStatus();
}

}  // namespace

// One ReadTensor call: a chunk at a time, the next one being read from disk
// meanwhile.
class WeightServiceImpl::ReadCall final
    : public grpc::ServerWriteReactor<TensorChunk> {
 public:
  explicit ReadCall(std::atomic<int>* reads) : reads_(*reads) {}

  void Refuse(const absl::Status& status) { Finish(ToGrpcStatus(status)); }

  void Begin(const TensorIndex::Entry& entry,
             const ReadTensorRequest& request) {
    mapping_ = &entry.file->mapping();
    tensor_ = entry.file->data(*entry.tensor);
    next_ = request.offset();
    end_ = request.offset() + request.length();
    Prefetch();
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::CANCELLED);
      return;
    }
    mapping_->Release(tensor_ + chunk_.offset(), chunk_.data().size());
    WriteNext();
  }
  void OnDone() override {
    reads_.fetch_sub(1);
    delete this;
  }

 private:
  void Prefetch() const {
    const uint64_t size = std::min(2 * kMaxTensorChunkBytes, end_ - next_);
    if (size > 0) mapping_->Prefetch(tensor_ + next_, size);
  }

  void WriteNext() {
    if (next_ == end_) {
      Finish(grpc::Status::OK);
      return;
    }
    const uint64_t size = std::min(kMaxTensorChunkBytes, end_ - next_);
    chunk_.set_offset(next_);
    chunk_.set_data(tensor_ + next_, size);
    chunk_.set_crc32c(Crc32c(chunk_.data()));
    next_ += size;
    Prefetch();
    StartWrite(&chunk_);
  }

  std::atomic<int>& reads_;
  const MappedFile* mapping_ = nullptr;
  const std::byte* tensor_ = nullptr;
  uint64_t next_ = 0;  // bytes of the tensor
  uint64_t end_ = 0;
  TensorChunk chunk_;
};

absl::StatusOr<std::unique_ptr<WeightServiceImpl>> WeightServiceImpl::Create(
    const Checkpoint& checkpoint, const Options& options) {
  ASSIGN_OR_RETURN(TensorIndex index,
                   TensorIndex::Open(checkpoint.directory()));
  return std::unique_ptr<WeightServiceImpl>(
      new WeightServiceImpl(checkpoint, options, std::move(index)));
}

WeightServiceImpl::WeightServiceImpl(const Checkpoint& checkpoint,
                                     const Options& options, TensorIndex index)
    : directory_(checkpoint.directory()),
      name_(checkpoint.name()),
      fingerprint_(checkpoint.fingerprint()),
      options_(options),
      index_(std::move(index)) {}

grpc::ServerUnaryReactor* WeightServiceImpl::GetManifest(
    grpc::CallbackServerContext* context,
    const expert::v1::GetManifestRequest* request, Manifest* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(FillManifest(response)));
  return reactor;
}

absl::Status WeightServiceImpl::FillManifest(Manifest* manifest) const {
  manifest->set_checkpoint_fingerprint(fingerprint_);
  manifest->set_name(name_);
  for (const char* name : {"config.json", "generation_config.json",
                           "model.safetensors.index.json"}) {
    RETURN_IF_ERROR(AddFile(directory_, name, manifest));
  }
  for (const SafetensorsFile& file : index_.files()) {
    const MappedFile& mapping = file.mapping();
    const size_t header_bytes =
        file.tensors().empty()
            ? mapping.size()
            : static_cast<size_t>(file.data(file.tensors().front()) -
                                  mapping.data());
    const absl::string_view header = Bytes(mapping.data(), header_bytes);
    expert::v1::WeightFile* message = manifest->add_weight_files();
    message->set_name(std::filesystem::path(file.path()).filename().string());
    message->set_size_bytes(mapping.size());
    message->set_header(std::string(header));
    message->set_crc32c(Crc32c(header));
    mapping.Release(mapping.data(), header_bytes);
  }
  return absl::OkStatus();
}

grpc::ServerWriteReactor<TensorChunk>* WeightServiceImpl::ReadTensor(
    grpc::CallbackServerContext* context, const ReadTensorRequest* request) {
  const int others = reads_.fetch_add(1);
  auto* call = new ReadCall(&reads_);  // deletes itself
  if (others >= options_.max_reads) {
    call->Refuse(absl::ResourceExhaustedError(
        absl::StrCat(others, " tensors are being read; try another peer")));
    return call;
  }
  const absl::StatusOr<TensorIndex::Entry> entry = Find(*request);
  if (entry.ok()) {
    call->Begin(*entry, *request);
  } else {
    call->Refuse(entry.status());
  }
  return call;
}

absl::StatusOr<TensorIndex::Entry> WeightServiceImpl::Find(
    const ReadTensorRequest& request) const {
  if (request.checkpoint_fingerprint() != fingerprint_) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint here is ", fingerprint_, ", not ",
                     Quoted(request.checkpoint_fingerprint())));
  }
  const TensorIndex::Entry entry = index_.Find(request.tensor());
  const auto missing = [&] {
    return absl::NotFoundError(
        absl::StrCat("tensor ", Quoted(request.tensor()), " is not here"));
  };
  if (entry.tensor == nullptr) return missing();
  const uint64_t size = entry.tensor->end - entry.tensor->begin;
  if (request.offset() > size || request.length() > size - request.offset()) {
    return absl::OutOfRangeError(absl::StrCat(
        "tensor ", Quoted(request.tensor()), " has ", size, " bytes, not ",
        request.length(), " from ", request.offset()));
  }
  if (!options_.has(request.tensor(), request.offset() + request.length())) {
    return missing();
  }
  return entry;
}

}  // namespace expertmesh
