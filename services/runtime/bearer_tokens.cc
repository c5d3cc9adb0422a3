#include "services/runtime/bearer_tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/stoppable_sleep.h"

namespace expertmesh {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(1);

class TokenGuard final : public grpc::AuthMetadataProcessor {
 public:
  TokenGuard(const BearerTokens* tokens, std::function<void()> on_refused)
      : tokens_(*tokens), on_refused_(std::move(on_refused)) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext*,
                       OutputMetadata* consumed, OutputMetadata*) override {
    const auto path = metadata.find(":path");
    if (path != metadata.end() &&
        absl::StartsWith(View(path->second), "/grpc.health.v1.Health/")) {
      return grpc::Status::OK;
    }
    const auto shown = metadata.equal_range("authorization");
    for (auto it = shown.first; it != shown.second; ++it) {
      absl::string_view token = View(it->second);
      // The scheme's name is case-insensitive.
      if (!absl::StartsWithIgnoreCase(token, "bearer ")) continue;
      token.remove_prefix(std::strlen("bearer "));
      if (!tokens_.Has(absl::StripAsciiWhitespace(token))) continue;
      consumed->emplace("authorization", std::string(View(it->second)));
      return grpc::Status::OK;
    }
    if (on_refused_) on_refused_();
    return grpc::Status(
        grpc::StatusCode::UNAUTHENTICATED,
        shown.first == shown.second
            ? "a token is needed: metadata \"authorization: Bearer TOKEN\""
            : "the token in \"authorization\" is not one of those accepted");
  }

 private:
  static absl::string_view View(const grpc::string_ref& text) {
    return {text.data(), text.size()};
  }

  const BearerTokens& tokens_;
  const std::function<void()> on_refused_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BearerTokens>> BearerTokens::Load(
    const std::string& flag, const std::string& path) {
  std::unique_ptr<BearerTokens> tokens(new BearerTokens(flag, path));
  ASSIGN_OR_RETURN(auto digests, tokens->Read());
  {
    MutexLock lock(&tokens->mutex_);
    tokens->digests_ = std::move(digests);
  }
  tokens->watcher_ =
      CallEvery(kInterval, [self = tokens.get()] { self->Look(); });
  return tokens;
}

BearerTokens::~BearerTokens() {
  watcher_.request_stop();
  if (watcher_.joinable()) watcher_.join();
}

absl::StatusOr<std::vector<BearerTokens::Digest>> BearerTokens::Read() const {
  const auto error = [this](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag_, " ", path_, ": ", what));
  };
  std::ifstream in(path_);
  if (!in.is_open()) return error(std::strerror(errno));
  std::vector<Digest> digests;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (token.empty() || token[0] == '#') continue;
    if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
      return error(absl::StrCat("line ", number,
                                " has characters that no token can have"));
    }
    digests.push_back(DigestOf(token));
  }
  if (in.bad()) return error("cannot be read");
  if (digests.empty()) return error("holds no token");
  return digests;
}

BearerTokens::Digest BearerTokens::DigestOf(absl::string_view token) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(),
         digest.data());
  return digest;
}

void BearerTokens::Look() {
  auto digests = Read();
  if (!digests.ok()) {
    if (digests.status().message() != last_error_) {
      Log(LogLevel::kWarning, "tokens are not renewed",
          {{"why", digests.status().message()}});
    }
    last_error_ = std::string(digests.status().message());
    return;
  }
  last_error_.clear();
  // Whoever writes the file may not be done with it.
  const bool is_settled = *digests == seen_;
  seen_ = *std::move(digests);
  MutexLock lock(&mutex_);
  if (!is_settled || seen_ == digests_) return;
  digests_ = seen_;
  Log(LogLevel::kInfo, "tokens renewed",
      {{"file", path_}, {"tokens", digests_.size()}});
}

bool BearerTokens::Has(absl::string_view token) const {
  const Digest digest = DigestOf(token);
  bool is_one = false;
  MutexLock lock(&mutex_);
  for (const Digest& known : digests_) {
    is_one |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  }
  return is_one;
}

std::shared_ptr<grpc::AuthMetadataProcessor> BearerTokens::Guard(
    std::function<void()> on_refused) const {
  return std::make_shared<TokenGuard>(this, std::move(on_refused));
}

}  // namespace expertmesh
