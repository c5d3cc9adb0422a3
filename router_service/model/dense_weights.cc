#include "router_service/model/dense_weights.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const DenseLoadOptions& options)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        options_(options),
        format_(options.format) {}

  absl::StatusOr<DenseWeights> Load();

 private:
  absl::StatusOr<AttentionWeights> Attention(int64_t layer);
  absl::StatusOr<LayerWeights> Layer(int64_t layer);
  absl::StatusOr<FfnWeights> Ffn(const std::string& gate_proj,
                                 const std::string& up_proj,
                                 const std::string& down_proj,
                                 int64_t intermediate_size);
  absl::StatusOr<std::vector<float>> Vector(const std::string& name,
                                            int64_t size);
  // In format_.
  absl::StatusOr<PackedMatrix> Matrix(absl::Span<const std::string> names,
                                      absl::Span<const int64_t> rows,
                                      int64_t columns);
  // In the checkpoint's type.
  absl::StatusOr<PackedMatrix> Gate(const std::string& name, int64_t rows);
  absl::StatusOr<PackedMatrix> MatrixAs(absl::Span<const std::string> names,
                                        absl::Span<const int64_t> rows,
                                        int64_t columns,
                                        std::optional<WeightFormat> format);

  // What is kept in one file of the cache: the matrices between these two.
  void BeginFile(absl::string_view name);
  void EndFile();
  absl::StatusOr<PackedMatrix> PackParts(absl::Span<const TensorView> parts,
                                         absl::string_view first_name,
                                         WeightFormat format);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const DenseLoadOptions options_;
  const std::optional<WeightFormat> format_;
  size_t size_bytes_ = 0;

  std::string file_name_;
  std::vector<PackedMatrix> kept_;  // what the file has
  std::vector<PackedMatrix> file_;  // what it should have, so far
  bool is_kept_ = true;             // all of that
};

// Tensors of a mapped file may be unaligned, so elements are copied out.
float Element(const TensorView& tensor, int64_t index) {
  const std::byte* at = tensor.data + index * DTypeBytes(tensor.dtype);
  if (tensor.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return tensor.dtype == DType::kBF16 ? ToF32(BF16{bits}) : F16ToF32(bits);
}

absl::StatusOr<std::vector<float>> Loader::Vector(const std::string& name,
                                                  int64_t size) {
  ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_.Tensor(name, {size}));
  checkpoint_.Prefetch(tensor);
  std::vector<float> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = Element(tensor, i);
  checkpoint_.Release(tensor);
  return values;
}

void Loader::BeginFile(absl::string_view name) {
  file_.clear();
  is_kept_ = true;
  if (options_.cache == nullptr) return;
  file_name_ = absl::StrCat("router-", name, ".",
                            format_ ? WeightFormatName(*format_) : "stored");
  kept_ = options_.cache->Load(file_name_, /*sample=*/0);
}

void Loader::EndFile() {
  if (options_.cache == nullptr || is_kept_) return;
  options_.cache->Store(file_name_, /*sample=*/0, file_);
}

// Packs tensors one under the other and lets go of their pages.
absl::StatusOr<PackedMatrix> Loader::PackParts(
    absl::Span<const TensorView> parts, absl::string_view first_name,
    WeightFormat format) {
  const auto release = [this](const TensorView& rows) {
    checkpoint_.Release(rows);
  };
  for (const TensorView& part : parts) checkpoint_.Prefetch(part);
  absl::StatusOr<PackedMatrix> packed = PackedMatrix::Pack(
      parts, format, {.pool = options_.pool, .packed = release});
  if (!packed.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(checkpoint_.directory(), ": tensor '", first_name,
                     "' and its neighbours: ", packed.status().message()));
  }
  for (const TensorView& part : parts) release(part);
  return packed;
}

// From [rows[i], columns] tensors, or as the cache has it.
absl::StatusOr<PackedMatrix> Loader::MatrixAs(
    absl::Span<const std::string> names, absl::Span<const int64_t> rows,
    int64_t columns, std::optional<WeightFormat> format) {
  std::vector<TensorView> parts;
  int64_t n = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    ASSIGN_OR_RETURN(TensorView part,
                     checkpoint_.Tensor(names[i], {rows[i], columns}));
    parts.push_back(std::move(part));
    n += rows[i];
  }
  const WeightFormat packed_as = format.value_or(FormatOf(parts[0].dtype));
  const size_t index = file_.size();
  if (index < kept_.size() && IsPackedAs(kept_[index], n, columns, packed_as)) {
    file_.push_back(kept_[index]);
  } else {
    is_kept_ = false;
    ASSIGN_OR_RETURN(PackedMatrix packed,
                     PackParts(parts, names[0], packed_as));
    file_.push_back(std::move(packed));
  }
  size_bytes_ += file_.back().size_bytes();
  if (options_.progress) {
    options_.progress(n * columns *
                      static_cast<int64_t>(DTypeBytes(parts[0].dtype)));
  }
  return file_.back();
}

absl::StatusOr<PackedMatrix> Loader::Matrix(absl::Span<const std::string> names,
                                            absl::Span<const int64_t> rows,
                                            int64_t columns) {
  return MatrixAs(names, rows, columns, format_);
}

absl::StatusOr<PackedMatrix> Loader::Gate(const std::string& name,
                                          int64_t rows) {
  return MatrixAs({name}, {rows}, config_.hidden_size, std::nullopt);
}

absl::StatusOr<AttentionWeights> Loader::Attention(int64_t layer) {
  const AttentionTensorNames names = checkpoint_.family().AttentionNames(layer);
  const int64_t hidden = config_.hidden_size;
  const int64_t q = config_.q_size();
  const int64_t kv = config_.kv_size();
  AttentionWeights weights;
  ASSIGN_OR_RETURN(weights.norm, Vector(names.input_norm, hidden));
  ASSIGN_OR_RETURN(weights.qkv,
                   Matrix({names.q_proj + ".weight", names.k_proj + ".weight",
                           names.v_proj + ".weight"},
                          {q, kv, kv}, hidden));
  ASSIGN_OR_RETURN(weights.o_proj,
                   Matrix({names.o_proj + ".weight"}, {hidden}, q));
  if (config_.qkv_bias) {
    const std::pair<std::string, int64_t> parts[] = {
        {names.q_proj, q}, {names.k_proj, kv}, {names.v_proj, kv}};
    for (const auto& [name, size] : parts) {
      ASSIGN_OR_RETURN(const std::vector<float> bias,
                       Vector(name + ".bias", size));
      weights.qkv_bias.insert(weights.qkv_bias.end(), bias.begin(), bias.end());
    }
  }
  if (config_.o_bias) {
    ASSIGN_OR_RETURN(weights.o_bias, Vector(names.o_proj + ".bias", hidden));
  }
  if (config_.qk_norm != QkNorm::kNone) {
    const bool per_head = config_.qk_norm == QkNorm::kPerHead;
    ASSIGN_OR_RETURN(weights.q_norm,
                     Vector(names.q_norm, per_head ? config_.head_dim : q));
    ASSIGN_OR_RETURN(weights.k_norm,
                     Vector(names.k_norm, per_head ? config_.head_dim : kv));
  }
  return weights;
}

absl::StatusOr<FfnWeights> Loader::Ffn(const std::string& gate_proj,
                                       const std::string& up_proj,
                                       const std::string& down_proj,
                                       int64_t intermediate_size) {
  FfnWeights weights;
  weights.intermediate_size = intermediate_size;
  ASSIGN_OR_RETURN(
      weights.gate_up,
      Matrix({gate_proj, up_proj}, {intermediate_size, intermediate_size},
             config_.hidden_size));
  ASSIGN_OR_RETURN(weights.down_proj, Matrix({down_proj}, {config_.hidden_size},
                                             intermediate_size));
  return weights;
}

absl::StatusOr<LayerWeights> Loader::Layer(int64_t layer) {
  const FeedForwardTensorNames names =
      checkpoint_.family().FeedForwardNames(layer);
  const int64_t hidden = config_.hidden_size;
  LayerWeights weights;
  ASSIGN_OR_RETURN(weights.attention, Attention(layer));
  ASSIGN_OR_RETURN(weights.ffn_norm, Vector(names.norm, hidden));
  if (!config_.layers[layer].is_moe) {
    ASSIGN_OR_RETURN(
        weights.dense,
        Ffn(names.dense_gate_proj, names.dense_up_proj, names.dense_down_proj,
            config_.dense_intermediate_size));
    return weights;
  }
  ASSIGN_OR_RETURN(weights.gate, Gate(names.gate, config_.num_experts));
  if (config_.shared_intermediate_size > 0) {
    ASSIGN_OR_RETURN(
        weights.shared,
        Ffn(names.shared_gate_proj, names.shared_up_proj,
            names.shared_down_proj, config_.shared_intermediate_size));
  }
  if (config_.shared_expert_gate) {
    ASSIGN_OR_RETURN(weights.shared_gate, Gate(names.shared_expert_gate, 1));
  }
  return weights;
}

absl::StatusOr<DenseWeights> Loader::Load() {
  const ModelTensorNames names = checkpoint_.family().ModelNames();
  const int64_t hidden = config_.hidden_size;
  const int64_t vocab = config_.vocab_size;
  DenseWeights weights;
  ASSIGN_OR_RETURN(weights.embed_tokens,
                   checkpoint_.Tensor(names.embed_tokens, {vocab, hidden}));
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    BeginFile(absl::StrCat("layer", layer));
    ASSIGN_OR_RETURN(LayerWeights loaded, Layer(layer));
    EndFile();
    weights.layers.push_back(std::move(loaded));
  }
  ASSIGN_OR_RETURN(weights.final_norm, Vector(names.final_norm, hidden));
  const std::string& head =
      config_.tie_word_embeddings ? names.embed_tokens : names.lm_head;
  BeginFile("head");
  ASSIGN_OR_RETURN(weights.lm_head, Matrix({head}, {vocab}, hidden));
  EndFile();
  weights.size_bytes = size_bytes_;
  weights.quantized = format_.has_value() && IsQuantized(*format_);
  return weights;
}

}  // namespace

absl::StatusOr<DenseWeights> DenseWeights::Load(
    const Checkpoint& checkpoint, const DenseLoadOptions& options) {
  return Loader(checkpoint, options).Load();
}

}  // namespace expertmesh::router
