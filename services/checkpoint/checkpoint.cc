#include "services/checkpoint/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/families/families.h"
#include "services/checkpoint/json_reader.h"
#include "services/checkpoint/required_tensors.h"
#include "services/checkpoint/tensor_index.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

// FNV-1a, 64 bits: names contents, does not defend against forgery.
class Hash {
 public:
  void Add(absl::string_view bytes) {
    for (const char c : bytes) {
      value_ = (value_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    }
  }
  // Numbers end in a separator, so that fields cannot run into each other.
  void Add(uint64_t number) { Add(absl::StrCat(number, ";")); }
  std::string Hex() const {
    return absl::StrCat(absl::Hex(value_, absl::kZeroPad16));
  }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<const ModelFamily*> ReadFamily(ConfigReader& reader,
                                              const std::string& path) {
  const std::string model_type = reader.StringOr("model_type", "");
  RETURN_IF_ERROR(reader.status());
  const ModelFamily* family = FindFamily(model_type);
  if (family == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": model_type ", Quoted(model_type),
                     " is not supported (known: ", KnownFamilies(), ")"));
  }
  return family;
}

void RefuseQuantised(ConfigReader& reader) {
  if (!reader.Has("quantization_config")) return;
  ConfigReader quantization = reader.Object("quantization_config");
  reader.Fail("quantization_config", "(method ",
              Quoted(quantization.StringOr("quant_method", "unnamed")),
              ") is not supported: the checkpoint must hold f32, bf16 or f16 "
              "weights");
}

// Whether two tensors of one shape and type hold the same. Piece by piece, so
// that two tables are not resident at once.
bool SameBytes(const Checkpoint& checkpoint, const TensorView& a,
               const TensorView& b) {
  constexpr int64_t kPieceElements = int64_t{1} << 20;
  const auto element_bytes = static_cast<int64_t>(DTypeBytes(a.dtype));
  const int64_t count = static_cast<int64_t>(a.size_bytes()) / element_bytes;
  checkpoint.Prefetch(a);
  checkpoint.Prefetch(b);
  bool same = true;
  for (int64_t at = 0; same && at < count; at += kPieceElements) {
    const auto piece = [&](const TensorView& whole) -> TensorView {
      return {whole.data + at * element_bytes,
              whole.dtype,
              {std::min(kPieceElements, count - at)}};
    };
    const TensorView in_a = piece(a);
    const TensorView in_b = piece(b);
    same = std::memcmp(in_a.data, in_b.data, in_a.size_bytes()) == 0;
    checkpoint.Release(in_a);
    checkpoint.Release(in_b);
  }
  return same;
}

}  // namespace

struct Checkpoint::Files {
  TensorIndex index;

  const MappedFile* MappingOf(const TensorView& tensor) const {
    for (const SafetensorsFile& file : index.files()) {
      if (file.mapping().Contains(tensor.data, tensor.size_bytes())) {
        return &file.mapping();
      }
    }
    return nullptr;
  }
};

Checkpoint::Checkpoint() = default;
Checkpoint::~Checkpoint() = default;

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& directory, Data data) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(directory, ignored)) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": no such checkpoint folder"));
  }
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->directory_ = directory;
  RETURN_IF_ERROR(checkpoint->ReadConfig());
  ASSIGN_OR_RETURN(TensorIndex index, TensorIndex::Open(directory));
  checkpoint->files_ =
      std::make_unique<Files>(Files{.index = std::move(index)});
  RETURN_IF_ERROR(checkpoint->CheckTensors(data));
  RETURN_IF_ERROR(checkpoint->ComputeFingerprint());
  RETURN_IF_ERROR(checkpoint->ComputeLocalId(data));
  return checkpoint;
}

absl::Status Checkpoint::ReadConfig() {
  const std::string path = directory_ + "/config.json";
  ASSIGN_OR_RETURN(const nlohmann::json json,
                   ReadJsonFile(path, kMaxConfigBytes));
  config_text_ = json.dump();
  ConfigReader reader(path, json);
  ASSIGN_OR_RETURN(family_, ReadFamily(reader, path));
  RefuseQuantised(reader);
  RETURN_IF_ERROR(reader.status());
  ASSIGN_OR_RETURN(config_, family_->ParseConfig(reader));
  config_.model_type = std::string(family_->model_type());
  RETURN_IF_ERROR(ValidateModelConfig(path, config_));
  ASSIGN_OR_RETURN(
      defaults_,
      ReadGenerationDefaults(directory_ + "/generation_config.json", reader));
  return absl::OkStatus();
}

// Shapes and types by the headers alone: a service that needs only some tensors
// refuses a checkpoint that is broken anywhere.
absl::Status Checkpoint::CheckTensors(Data data) const {
  const auto check = [this](const RequiredTensor& required) {
    return Tensor(required.name, required.shape).status();
  };
  RETURN_IF_ERROR(VisitRouterTensors(config_, *family_, check));
  RETURN_IF_ERROR(VisitExpertTensors(config_, *family_, check));
  RETURN_IF_ERROR(CheckJoinedTypes());
  if (data == Data::kWhole) RETURN_IF_ERROR(CheckTiedHead());
  // A bias that the configuration denies would be left out without a word.
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const AttentionTensorNames names = family_->AttentionNames(layer);
    const std::pair<const std::string&, bool> projections[] = {
        {names.q_proj, config_.qkv_bias},
        {names.k_proj, config_.qkv_bias},
        {names.v_proj, config_.qkv_bias},
        {names.o_proj, config_.o_bias}};
    for (const auto& [projection, has_bias] : projections) {
      const std::string bias = projection + ".bias";
      const TensorIndex::Entry entry = files_->index.Find(bias);
      if (!has_bias && entry.tensor != nullptr) {
        return absl::FailedPreconditionError(
            absl::StrCat(entry.file->path(), ": tensor ", Quoted(bias),
                         " is there, but config.json says that attention has "
                         "no such bias"));
      }
    }
  }
  return absl::OkStatus();
}

// Matrices that the router packs together have one type. (An expert's three may
// differ where they are converted at load.)
absl::Status Checkpoint::CheckJoinedTypes() const {
  const auto same = [this](const std::string& first,
                           const std::string& other) -> absl::Status {
    const TensorIndex::Entry a = files_->index.Find(first);
    const TensorIndex::Entry b = files_->index.Find(other);
    if (a.tensor->dtype == b.tensor->dtype) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        b.file->path(), ": tensor ", Quoted(other), " is ", b.tensor->dtype,
        ", but ", Quoted(first), " is ", a.tensor->dtype));
  };
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const AttentionTensorNames attention = family_->AttentionNames(layer);
    const std::string q = attention.q_proj + ".weight";
    RETURN_IF_ERROR(same(q, attention.k_proj + ".weight"));
    RETURN_IF_ERROR(same(q, attention.v_proj + ".weight"));
    const FeedForwardTensorNames ffn = family_->FeedForwardNames(layer);
    if (!config_.layers[layer].is_moe) {
      RETURN_IF_ERROR(same(ffn.dense_gate_proj, ffn.dense_up_proj));
    } else if (config_.shared_intermediate_size > 0) {
      RETURN_IF_ERROR(same(ffn.shared_gate_proj, ffn.shared_up_proj));
    }
  }
  return absl::OkStatus();
}

// A tied head is the embedding table. Files that hold it all the same must hold
// the same values: the reference uses two that differ, whatever config.json
// says, and here one of them would be left out without a word.
absl::Status Checkpoint::CheckTiedHead() const {
  const ModelTensorNames names = family_->ModelNames();
  const TensorIndex::Entry entry = files_->index.Find(names.lm_head);
  if (!config_.tie_word_embeddings || entry.tensor == nullptr) {
    return absl::OkStatus();
  }
  const int64_t shape[] = {config_.vocab_size, config_.hidden_size};
  ASSIGN_OR_RETURN(const TensorView table, Tensor(names.embed_tokens, shape));
  ASSIGN_OR_RETURN(const TensorView head, Tensor(names.lm_head, shape));
  if (head.dtype == table.dtype && SameBytes(*this, head, table)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      entry.file->path(), ": tensor ", Quoted(names.lm_head), " differs from ",
      Quoted(names.embed_tokens),
      ", but config.json says tie_word_embeddings; the checkpoint must hold "
      "one of them, or config.json say false"));
}

absl::Status Checkpoint::ComputeFingerprint() {
  Hash hash;
  hash.Add(config_text_.size());
  hash.Add(config_text_);
  for (const SafetensorsFile& file : files_->index.files()) {
    hash.Add(file.mapping().size());
    hash.Add(file.tensors().size());
    for (const TensorInfo& tensor : file.tensors()) {
      hash.Add(tensor.name.size());
      hash.Add(tensor.name);
      hash.Add(absl::StrCat(tensor.dtype, ShapeText(tensor.shape)));
      hash.Add(tensor.begin);
    }
  }
  // A fine-tuned model has the shapes of its parent. Reading all tensors would
  // take minutes, so some give a few bytes each.
  const auto sample = [&](const RequiredTensor& required) -> absl::Status {
    ASSIGN_OR_RETURN(const TensorView tensor,
                     Tensor(required.name, required.shape));
    hash.Add(absl::string_view(
        reinterpret_cast<const char*>(tensor.data),
        std::min<uint64_t>(tensor.size_bytes(), kFingerprintSampleBytes)));
    Release(tensor);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(VisitSampledTensors(config_, *family_, sample));
  fingerprint_ = hash.Hex();
  return absl::OkStatus();
}

absl::Status Checkpoint::ComputeLocalId(Data data) {
  local_id_ = fingerprint_;
  // Holes are filled as tensors come.
  if (data == Data::kPartial) return absl::OkStatus();
  Hash hash;
  for (const SafetensorsFile& file : files_->index.files()) {
    std::error_code error;
    const auto written = std::filesystem::last_write_time(file.path(), error);
    if (error) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.path(), ": ", error.message()));
    }
    hash.Add(static_cast<uint64_t>(written.time_since_epoch().count()));
  }
  absl::StrAppend(&local_id_, "-", hash.Hex());
  return absl::OkStatus();
}

std::string Checkpoint::name() const {
  std::error_code error;
  const auto path = std::filesystem::canonical(directory_, error);
  return error ? directory_ : path.filename().string();
}

bool Checkpoint::HasTensor(absl::string_view name) const {
  return files_->index.Find(name).tensor != nullptr;
}

const std::string& Checkpoint::FileOf(absl::string_view name) const {
  const TensorIndex::Entry entry = files_->index.Find(name);
  return entry.tensor == nullptr ? files_->index.path() : entry.file->path();
}

absl::StatusOr<TensorView> Checkpoint::Tensor(
    absl::string_view name, absl::Span<const int64_t> shape) const {
  const TensorIndex::Entry entry = files_->index.Find(name);
  const auto fault = [&](const auto&... message) {
    return absl::FailedPreconditionError(
        absl::StrCat(FileOf(name), ": tensor ", Quoted(name), " ", message...));
  };
  if (entry.tensor == nullptr) {
    return fault("is missing (the configuration asks for shape ",
                 ShapeText(shape), ")");
  }
  const TensorInfo& tensor = *entry.tensor;
  if (absl::MakeConstSpan(tensor.shape) != shape) {
    return fault("has shape ", ShapeText(tensor.shape),
                 ", but the configuration asks for ", ShapeText(shape));
  }
  if (tensor.dtype != "F32" && tensor.dtype != "BF16" &&
      tensor.dtype != "F16") {
    return fault("has dtype ", tensor.dtype,
                 ", which is not supported (F32, BF16 and F16 are)");
  }
  TensorView view;
  ASSIGN_OR_RETURN(view.dtype, ParseDType(tensor.dtype));
  view.data = entry.file->data(tensor);
  view.shape = tensor.shape;
  return view;
}

void Checkpoint::Prefetch(const TensorView& tensor) const {
  if (const MappedFile* mapping = files_->MappingOf(tensor)) {
    mapping->Prefetch(tensor.data, tensor.size_bytes());
  }
}

void Checkpoint::Release(const TensorView& tensor) const {
  if (const MappedFile* mapping = files_->MappingOf(tensor)) {
    mapping->Release(tensor.data, tensor.size_bytes());
  }
}

}  // namespace expertmesh
