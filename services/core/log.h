#pragma once

// Structured logs: one line per event on standard error, as text or JSON.
//   Log(LogLevel::kInfo, "request finished",
//       {{"request_id", id}, {"tokens", 12}});
// Prompts and tokens are never logged.

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view name);

// Process-wide; set once at start. `service` is stamped on every line.
void ConfigureLog(absl::string_view service, LogLevel level, LogFormat format);

// That of every line since ConfigureLog.
LogFormat CurrentLogFormat();

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
    if constexpr (std::is_same_v<Number, bool>) {
      text_ = value ? "true" : "false";
    } else if constexpr (std::is_integral_v<Number>) {
      text_ = std::to_string(value);
    } else {
      SetNumber(static_cast<double>(value));
    }
  }

  absl::string_view key() const { return key_; }
  absl::string_view text() const { return text_; }
  bool quoted() const { return quoted_; }

 private:
  void SetNumber(double value);

  std::string key_;
  std::string text_;
  bool quoted_ = true;
};

// Thread-safe; each call writes one whole line of at most 4 KiB, for which long
// values are cut and end in an ellipsis. Lines are UTF-8: other bytes become
// U+FFFD. Never waits: where nobody reads standard error, lines are lost.
void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields = {});

// What a LogRateLimit lets through: `burst` lines at once, and `per_second`
// more each second.
struct LogRate {
  double per_second = 1;
  double burst = 1;
};

// Writes a line that is no log line to where those go, in the same way: it
// never waits for a reader, and is lost where there is none.
void WriteLogLine(std::string line);

// A token bucket for one call site, so that strangers cannot fill the log:
//   static LogRateLimit limit({.per_second = 100, .burst = 100});
//   Log(limit, LogLevel::kInfo, "request finished", {{"tokens", 12}});
// Thread-safe.
class LogRateLimit {
 public:
  // `clock` must outlive this.
  explicit LogRateLimit(LogRate rate = {}, const Clock* clock = Clock::Real());

  // Nothing: not now. Else the number of lines that were refused since the
  // last one that was let through.
  std::optional<int64_t> Allow();

 private:
  const LogRate rate_;
  const Clock& clock_;
  Mutex mutex_;
  double tokens_ ABSL_GUARDED_BY(mutex_);
  absl::Duration refilled_ ABSL_GUARDED_BY(mutex_);
  int64_t suppressed_ ABSL_GUARDED_BY(mutex_) = 0;
};

// As Log, where `limit` allows it; a field `suppressed` counts the lines that
// it refused before this one.
void Log(LogRateLimit& limit, LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields = {});

}  // namespace expertmesh
