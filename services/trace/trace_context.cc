#include "services/trace/trace_context.h"

#include <cstring>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

constexpr uint8_t kSampledFlag = 1;

template <size_t size>
std::string HexOf(const std::array<uint8_t, size>& bytes) {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

std::mt19937_64 Seeded() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

template <size_t size>
std::array<uint8_t, size> RandomBytes() {
  static_assert(size % sizeof(uint64_t) == 0);
  static thread_local std::mt19937_64 random = Seeded();
  std::array<uint8_t, size> bytes;
  do {
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(&bytes[i], &word, sizeof(word));
    }
  } while (bytes == std::array<uint8_t, size>{});
  return bytes;
}

int DigitOf(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

template <size_t size>
bool ReadHex(absl::string_view text, std::array<uint8_t, size>* bytes) {
  for (size_t i = 0; i < size; ++i) {
    const int high = DigitOf(text[2 * i]);
    const int low = DigitOf(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    (*bytes)[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

}  // namespace

TraceId TraceId::Random() { return {RandomBytes<16>()}; }
std::string TraceId::Hex() const { return HexOf(bytes); }

SpanId SpanId::Random() { return {RandomBytes<8>()}; }
std::string SpanId::Hex() const { return HexOf(bytes); }

std::string TraceContext::ToTraceparent() const {
  return absl::StrCat("00-", trace_id.Hex(), "-", span_id.Hex(),
                      is_sampled ? "-01" : "-00");
}

std::optional<TraceContext> ParseTraceparent(absl::string_view text) {
  if (text.size() < kTraceparentChars || text[2] != '-' || text[35] != '-' ||
      text[52] != '-') {
    return std::nullopt;
  }
  std::array<uint8_t, 1> version, flags;
  TraceContext context;
  if (!ReadHex(text, &version) ||
      !ReadHex(text.substr(3), &context.trace_id.bytes) ||
      !ReadHex(text.substr(36), &context.span_id.bytes) ||
      !ReadHex(text.substr(53), &flags)) {
    return std::nullopt;
  }
  if (version[0] == 0xff || context.trace_id == TraceId() ||
      !context.span_id.is_valid()) {
    return std::nullopt;
  }
  if (text.size() > kTraceparentChars &&
      (version[0] == 0 || text[kTraceparentChars] != '-')) {
    return std::nullopt;
  }
  context.is_sampled = (flags[0] & kSampledFlag) != 0;
  return context;
}

}  // namespace expertmesh
