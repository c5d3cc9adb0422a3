#include "services/core/log.h"

#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace expertmesh {
namespace {

struct LogConfig {
  std::string service = "expertmesh";
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
};

LogConfig& Config() {
  static LogConfig* config = new LogConfig;  // outlives every thread
  return *config;
}

absl::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "?";
}

// Appends `text` as a JSON string. Bytes above 0x7f pass through: callers log
// identifiers and status messages, which are UTF-8.
void AppendQuoted(std::string* out, absl::string_view text) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(out, "\\u%04x", static_cast<int>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

void AppendTextValue(std::string* out, const LogField& field) {
  const bool plain =
      !field.text().empty() &&
      field.text().find_first_of(" \t\n\"=\\") == absl::string_view::npos;
  if (plain || !field.quoted()) {
    out->append(field.text().data(), field.text().size());
  } else {
    AppendQuoted(out, field.text());
  }
}

}  // namespace

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name) {
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo,
                               LogLevel::kWarning, LogLevel::kError}) {
    if (name == LevelName(level)) return level;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown log level '", name, "' (known: debug, info, warning, error)"));
}

absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(
      absl::StrCat("unknown log format '", name, "' (known: text, json)"));
}

void ConfigureLog(absl::string_view service, LogLevel level, LogFormat format) {
  Config() = {std::string(service), level, format};
}

void LogField::SetNumber(double value, bool integral) {
  if (integral) {
    text_ = absl::StrFormat("%.0f", value);
  } else if (std::isfinite(value)) {
    text_ = absl::StrFormat("%.6g", value);
  } else {
    text_ = "null";
  }
}

void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields) {
  const LogConfig& config = Config();
  if (level < config.level) return;
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  std::string line;
  if (config.format == LogFormat::kJson) {
    absl::StrAppend(&line, "{\"time\":\"", time, "\",\"level\":\"",
                    LevelName(level), "\",\"service\":");
    AppendQuoted(&line, config.service);
    line.append(",\"message\":");
    AppendQuoted(&line, message);
    for (const LogField& field : fields) {
      line.push_back(',');
      AppendQuoted(&line, field.key());
      line.push_back(':');
      if (field.quoted()) {
        AppendQuoted(&line, field.text());
      } else {
        line.append(field.text().data(), field.text().size());
      }
    }
    line.push_back('}');
  } else {
    absl::StrAppend(&line, time, " ", LevelName(level), " ", config.service,
                    ": ");
    // A newline in a message would break the promise of one line an event.
    for (const char c : message) line.push_back(c == '\n' ? ' ' : c);
    for (const LogField& field : fields) {
      absl::StrAppend(&line, " ", field.key(), "=");
      AppendTextValue(&line, field);
    }
  }
  line.push_back('\n');
  // A pipe that nobody reads must not stop the service. One that is writable
  // takes PIPE_BUF bytes at once; longer lines are cut to that.
  pollfd out = {STDERR_FILENO, POLLOUT, 0};
  if (poll(&out, 1, 0) <= 0) return;
  if (line.size() > PIPE_BUF) {
    line.resize(PIPE_BUF);
    line.back() = '\n';
  }
  // One write per line keeps lines of several processes apart on one terminal.
  [[maybe_unused]] const ssize_t written =
      write(STDERR_FILENO, line.data(), line.size());
}

bool LogRateLimit::Allow() {
  const int64_t now = absl::ToInt64Milliseconds(
      absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()));
  int64_t last = last_ms_.load();
  return now - last >= interval_ms_ &&
         last_ms_.compare_exchange_strong(last, now);
}

}  // namespace expertmesh
