#include "services/cli/text_coder.h"

#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/tokenizer.h"

namespace expertmesh {
namespace {

class Remote : public TextCoder {
 public:
  explicit Remote(const ServerFlags& flags) : client_(flags) {}

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
  explicit Local(std::unique_ptr<Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

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
      if (id > std::numeric_limits<int32_t>::max()) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is outside the vocabulary of ",
                         tokenizer_->vocab_size()));
      }
      signed_ids.push_back(id);
    }
    return tokenizer_->Decode(signed_ids, skip_special);
  }

 private:
  const std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace

std::unique_ptr<TextCoder> RemoteCoder(const ServerFlags& flags) {
  return std::make_unique<Remote>(flags);
}

absl::StatusOr<std::unique_ptr<TextCoder>> LocalCoder(const std::string& path) {
  std::error_code ignored;
  const std::string file =
      std::filesystem::is_directory(path, ignored)
          ? (std::filesystem::path(path) / "tokenizer.json").string()
          : path;
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(file));
  return std::make_unique<Local>(std::move(tokenizer));
}

}  // namespace expertmesh
