#include "services/cli/text_coder.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"
#include "services/text/tokenizer.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

class Remote : public TextCoder {
 public:
  explicit Remote(Client client) : client_(std::move(client)) {}

  absl::StatusOr<std::vector<uint32_t>> Encode(const std::string& text,
                                               bool no_special) override {
    v1::TokenizeRequest request;
    request.set_text(text);
    request.set_no_special(no_special);
    grpc::ClientContext context;
    client_.Prepare(context);
    v1::TokenizeResponse response;
    RETURN_IF_ERROR(client_.Result(
        client_.generation().Tokenize(&context, request, &response)));
    return std::vector<uint32_t>(response.token_ids().begin(),
                                 response.token_ids().end());
  }

  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids,
                                     bool skip_special) override {
    v1::DetokenizeRequest request;
    request.mutable_token_ids()->Assign(ids.begin(), ids.end());
    request.set_skip_special(skip_special);
    grpc::ClientContext context;
    client_.Prepare(context);
    v1::DetokenizeResponse response;
    RETURN_IF_ERROR(client_.Result(
        client_.generation().Detokenize(&context, request, &response)));
    return std::move(*response.mutable_text());
  }

 private:
  Client client_;
};

class Local : public TextCoder {
 public:
  Local(std::unique_ptr<Tokenizer> tokenizer, int64_t vocab_size)
      : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size) {}

  absl::StatusOr<std::vector<uint32_t>> Encode(const std::string& text,
                                               bool no_special) override {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     tokenizer_->Encode(text, !no_special));
    return std::vector<uint32_t>(ids.begin(), ids.end());
  }

  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids,
                                     bool skip_special) override {
    std::vector<int32_t> signed_ids;
    signed_ids.reserve(ids.size());
    for (const uint32_t id : ids) {
      if (id >= vocab_size_) {
        return absl::InvalidArgumentError(absl::StrCat(
            "token id ", id, " is outside the vocabulary of ", vocab_size_));
      }
      signed_ids.push_back(static_cast<int32_t>(id));
    }
    return tokenizer_->Decode(signed_ids, skip_special);
  }

 private:
  const std::unique_ptr<Tokenizer> tokenizer_;
  const int64_t vocab_size_;  // the tokenizer's or the model's, if larger
};

// vocab_size of a config.json; 0 where there is none.
absl::StatusOr<int64_t> ModelVocabSize(const std::string& path) {
  const absl::StatusOr<nlohmann::json> json =
      ReadJsonFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(json.status())) return 0;
  if (!json.ok()) return json.status();
  ConfigReader reader(path, *json);
  const int64_t size = reader.OptionalSize("vocab_size").value_or(0);
  RETURN_IF_ERROR(reader.status());
  return size;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TextCoder>> RemoteCoder(
    const ServerFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags));
  return std::make_unique<Remote>(std::move(client));
}

absl::StatusOr<std::unique_ptr<TextCoder>> LocalCoder(const std::string& path) {
  std::error_code ignored;
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(file, ignored)) file /= "tokenizer.json";
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Load(file.string()));
  ASSIGN_OR_RETURN(
      const int64_t model_size,
      ModelVocabSize((file.parent_path() / "config.json").string()));
  const int64_t vocab_size =
      std::max<int64_t>(tokenizer->vocab_size(), model_size);
  return std::make_unique<Local>(std::move(tokenizer), vocab_size);
}

}  // namespace expertmesh
