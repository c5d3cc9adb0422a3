#include "services/core/log.h"

#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

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

// Bytes that would move a terminal's cursor or break a line apart.
bool IsControl(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

// Bytes of the character that `text` begins with; 0: it is not UTF-8. Neither
// are surrogates, what is beyond U+10FFFF, and longer forms than need be.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) {
    return static_cast<unsigned char>(text[i]);
  };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first < 0xc2   ? 0
                      : first < 0xe0 ? 2
                      : first < 0xf0 ? 3
                      : first < 0xf5 ? 4
                                     : 0;
  if (size == 0 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool is_valid = !(first == 0xe0 && byte(1) < 0xa0) &&
                        !(first == 0xed && byte(1) > 0x9f) &&
                        !(first == 0xf0 && byte(1) < 0x90) &&
                        !(first == 0xf4 && byte(1) > 0x8f);
  return is_valid ? size : 0;
}

constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD
constexpr absl::string_view kCut = "\xe2\x80\xa6";          // an ellipsis

// The first bytes of `text`, with a mark where that is not all, and U+FFFD for
// every byte that is not of UTF-8: whoever reads a line may refuse others.
std::string Shown(absl::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t size = CharacterBytes(text.substr(i));
    const absl::string_view next =
        size == 0 ? kReplacement : text.substr(i, size);
    if (out.size() + next.size() > max_bytes) {
      absl::StrAppend(&out, kCut);
      break;
    }
    absl::StrAppend(&out, next);
    i += std::max<size_t>(1, size);
  }
  return out;
}

// Appends `text`, which is UTF-8, as a JSON string.
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
        if (IsControl(c)) {
          absl::StrAppendFormat(out, "\\u%04x", static_cast<int>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

void AppendTextValue(std::string* out, const LogField& field,
                     size_t max_bytes) {
  const std::string text = Shown(field.text(), max_bytes);
  const bool plain = !text.empty() &&
                     text.find_first_of(" \"=\\") == std::string::npos &&
                     std::none_of(text.begin(), text.end(), IsControl);
  if (plain || !field.quoted()) {
    out->append(text);
  } else {
    AppendQuoted(out, text);
  }
}

std::string JsonLine(absl::string_view time, LogLevel level,
                     absl::string_view message,
                     absl::Span<const LogField> fields, size_t max_bytes) {
  std::string line = absl::StrCat("{\"time\":\"", time, "\",\"level\":\"",
                                  LevelName(level), "\",\"service\":");
  AppendQuoted(&line, Config().service);
  line.append(",\"message\":");
  AppendQuoted(&line, Shown(message, max_bytes));
  for (const LogField& field : fields) {
    line.push_back(',');
    AppendQuoted(&line, field.key());
    line.push_back(':');
    if (field.quoted()) {
      AppendQuoted(&line, Shown(field.text(), max_bytes));
    } else {
      line.append(field.text().data(), field.text().size());
    }
  }
  line.push_back('}');
  return line;
}

std::string TextLine(absl::string_view time, LogLevel level,
                     absl::string_view message,
                     absl::Span<const LogField> fields, size_t max_bytes) {
  std::string line =
      absl::StrCat(time, " ", LevelName(level), " ", Config().service, ": ");
  // A newline in a message would break the promise of one line an event.
  for (const char c : Shown(message, max_bytes)) {
    line.push_back(IsControl(c) ? ' ' : c);
  }
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.key(), "=");
    AppendTextValue(&line, field, max_bytes);
  }
  return line;
}

void LogFields(LogLevel level, absl::string_view message,
               absl::Span<const LogField> fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  // A line that is cut would be no JSON: its values are, as short as need be.
  const auto line = [&](size_t max_bytes) {
    return Config().format == LogFormat::kJson
               ? JsonLine(time, level, message, fields, max_bytes)
               : TextLine(time, level, message, fields, max_bytes);
  };
  std::string out = line(PIPE_BUF);
  for (size_t max_bytes = PIPE_BUF / 2; out.size() >= PIPE_BUF && max_bytes > 0;
       max_bytes /= 2) {
    out = line(max_bytes);
  }
  WriteLogLine(std::move(out));
}

}  // namespace

void WriteLogLine(std::string line) {
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

LogFormat CurrentLogFormat() { return Config().format; }

void LogField::SetNumber(double value) {
  if (std::isfinite(value)) {
    text_ = absl::StrFormat("%.6g", value);
  } else {
    text_ = "null";
  }
}

void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields) {
  if (level < Config().level) return;
  LogFields(level, message, fields);
}

void Log(LogRateLimit& limit, LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields) {
  if (level < Config().level) return;
  const std::optional<int64_t> suppressed = limit.Allow();
  if (!suppressed) return;
  std::vector<LogField> all(fields);
  if (*suppressed > 0) all.emplace_back("suppressed", *suppressed);
  LogFields(level, message, all);
}

LogRateLimit::LogRateLimit(LogRate rate, const Clock* clock)
    : rate_(rate),
      clock_(*clock),
      tokens_(rate.burst),
      refilled_(clock->Now()) {}

std::optional<int64_t> LogRateLimit::Allow() {
  MutexLock lock(&mutex_);
  const absl::Duration now = clock_.Now();
  tokens_ = std::min(
      rate_.burst,
      tokens_ + rate_.per_second * absl::ToDoubleSeconds(now - refilled_));
  refilled_ = now;
  if (tokens_ < 1) {
    ++suppressed_;
    return std::nullopt;
  }
  tokens_ -= 1;
  return std::exchange(suppressed_, 0);
}

}  // namespace expertmesh
