#include <utility>

#include "absl/strings/match.h"
#include "services/text/token_decoder.h"
#include "services/text/tokenizer.h"
#include "services/text/tokenizer_impl.h"

namespace expertmesh {

class StreamingDetokenizer::State {
 public:
  State(const Tokenizer::Impl* tokenizer, bool skip_special)
      : tokenizer_(tokenizer),
        skip_special_(skip_special),
        stream_(&tokenizer->decoder()) {}

  void Resume(absl::Span<const int32_t> ids) {
    for (const int32_t id : ids) Feed(id);
    stream_.Take();
    // What these ids alone would end with, although the stream still holds it.
    text::DecodeStream end = stream_;
    end.Finish();
    shown_ = end.Take();
  }

  std::string Push(int32_t id) {
    Feed(id);
    return Unshown(stream_.Take());
  }

  std::string Flush() {
    stream_.Finish();
    std::string text = Unshown(stream_.Take());
    shown_.clear();
    return std::exchange(held_, {}) + text;
  }

 private:
  void Feed(int32_t id) {
    const std::string* token = tokenizer_->DecodableToken(id, skip_special_);
    if (token != nullptr) stream_.Push(*token);
  }

  // `text` without what it repeats of shown_, once that can be told.
  std::string Unshown(std::string text) {
    if (shown_.empty()) return text;
    held_ += text;
    if (held_.size() < shown_.size() && absl::StartsWith(shown_, held_)) {
      return std::string();
    }
    text = std::exchange(held_, {});
    if (absl::StartsWith(text, shown_)) text.erase(0, shown_.size());
    shown_.clear();
    return text;
  }

  const Tokenizer::Impl* tokenizer_;
  bool skip_special_;
  text::DecodeStream stream_;
  std::string shown_;  // shown before, and to come from the stream once more
  std::string held_;   // as much of it as has come
};

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer* tokenizer,
                                           bool skip_special)
    : state_(std::make_unique<State>(tokenizer->impl_.get(), skip_special)) {}

StreamingDetokenizer::~StreamingDetokenizer() = default;

void StreamingDetokenizer::Resume(absl::Span<const int32_t> ids) {
  state_->Resume(ids);
}

std::string StreamingDetokenizer::Push(int32_t id) { return state_->Push(id); }

std::string StreamingDetokenizer::Flush() { return state_->Flush(); }

}  // namespace expertmesh
