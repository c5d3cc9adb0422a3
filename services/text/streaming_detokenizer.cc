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

  std::string Push(int32_t id) {
    const std::string* token = tokenizer_->DecodableToken(id, skip_special_);
    if (token == nullptr) return std::string();
    stream_.Push(*token);
    return stream_.Take();
  }

  std::string Flush() {
    stream_.Finish();
    return stream_.Take();
  }

 private:
  const Tokenizer::Impl* tokenizer_;
  bool skip_special_;
  text::DecodeStream stream_;
};

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer* tokenizer,
                                           bool skip_special)
    : state_(std::make_unique<State>(tokenizer->impl_.get(), skip_special)) {}

StreamingDetokenizer::~StreamingDetokenizer() = default;

std::string StreamingDetokenizer::Push(int32_t id) { return state_->Push(id); }

std::string StreamingDetokenizer::Flush() { return state_->Flush(); }

}  // namespace expertmesh
