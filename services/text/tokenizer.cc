#include "services/text/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/tokenizer_impl.h"

namespace expertmesh {
namespace {

absl::StatusOr<nlohmann::json> ReadJson(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": not readable"));
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::parse_error& e) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": not JSON at byte ", e.byte));
  } catch (const nlohmann::json::exception&) {
    // A number out of range, for instance.
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": JSON that cannot be represented"));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& path) {
  ASSIGN_OR_RETURN(const nlohmann::json document, ReadJson(path));
  auto impl = Impl::Build(text::ConfigNode(&document, /*place=*/""));
  if (!impl.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": ", impl.status().message()));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(*std::move(impl)));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    absl::string_view text, bool add_special_tokens) const {
  return impl_->Encode(text, add_special_tokens);
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids,
                              bool skip_special) const {
  text::DecodeStream stream(&impl_->decoder());
  for (int32_t id : ids) {
    const std::string* token = impl_->DecodableToken(id, skip_special);
    if (token != nullptr) stream.Push(*token);
  }
  stream.Finish();
  return stream.Take();
}

std::optional<int32_t> Tokenizer::TokenId(absl::string_view token) const {
  return impl_->TokenId(token);
}

int32_t Tokenizer::vocab_size() const { return impl_->vocab_size(); }

}  // namespace expertmesh
