#pragma once

// Structured logs: one line per event on standard error, as text or JSON.
//   Log(LogLevel::kInfo, "request finished",
//       {{"request_id", id}, {"tokens", 12}});
// Prompts and tokens are never logged.

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view name);

// Process-wide; set once at start. `service` is stamped on every line.
void ConfigureLog(absl::string_view service, LogLevel level, LogFormat format);

// A value of a log field; numbers stay numbers in JSON.
class LogField {
 public:
  LogField(absl::string_view key, absl::string_view value)
      : key_(key), text_(value) {}
  LogField(absl::string_view key, const char* value)
      : LogField(key, absl::string_view(value)) {}
  LogField(absl::string_view key, const std::string& value)
      : LogField(key, absl::string_view(value)) {}
  template <typename Number>
  requires std::is_arithmetic_v<Number> LogField(absl::string_view key,
                                                 Number value)
      : key_(key), quoted_(false) {
    SetNumber(static_cast<double>(value), std::is_integral_v<Number>);
  }

  absl::string_view key() const { return key_; }
  absl::string_view text() const { return text_; }
  bool quoted() const { return quoted_; }

 private:
  void SetNumber(double value, bool integral);

  std::string key_;
  std::string text_;
  bool quoted_ = true;
};

// Thread-safe; each call writes one whole line of at most 4 KiB, and never
// waits: where nobody reads standard error, lines are lost.
void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields = {});

// At most one line per interval from one call site:
//   static LogRateLimit limit;  // one second
//   if (limit.Allow()) Log(...);
class LogRateLimit {
 public:
  explicit LogRateLimit(int64_t interval_ms = 1000)
      : interval_ms_(interval_ms) {}
  bool Allow();

 private:
  const int64_t interval_ms_;
  std::atomic<int64_t> last_ms_{INT64_MIN / 2};
};

}  // namespace expertmesh
