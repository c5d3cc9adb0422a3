#include "services/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

int out_error = 0;  // errno of the first failed write to standard output

}  // namespace

void WriteOut(absl::string_view text) {
  const bool written =
      fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
      fflush(stdout) == 0;
  if (!written && out_error == 0) out_error = errno;
}

absl::Status OutStatus() {
  WriteOut("");  // flushes what others have written
  if (ferror(stdout) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "cannot write to standard output",
      out_error == 0 ? "" : absl::StrCat(": ", strerror(out_error))));
}

void WriteErr(absl::string_view text) {
  fwrite(text.data(), 1, text.size(), stderr);
}

void ShowProgress(absl::string_view text) {
  if (isatty(STDERR_FILENO)) WriteErr(absl::StrCat("\r\033[K", text));
}

TerminalSize SizeOfTerminal(int fd) {
  TerminalSize size;
  winsize window = {};
  if (isatty(fd) && ioctl(fd, TIOCGWINSZ, &window) == 0) {
    size.rows = window.ws_row;
    if (window.ws_col > 0) size.columns = window.ws_col;
  }
  return size;
}

LiveLine::LiveLine()
    : live_(isatty(STDOUT_FILENO) && isatty(STDERR_FILENO)),
      width_(isatty(STDERR_FILENO) ? SizeOfTerminal(STDERR_FILENO).columns
                                   : 200) {}

void LiveLine::Erase() {
  if (live_) WriteErr("\033[J");
}

void LiveLine::Draw(absl::string_view line) {
  if (!live_) return;
  // Down and up again, so that there is a row below; then save the cursor, draw
  // there, and come back.
  WriteErr(absl::StrCat("\033D\033M\0337\033[1B\r", line, "\033[K\0338"));
}

void LiveLine::Finish(absl::string_view line) {
  Erase();
  WriteErr(absl::StrCat(line, "\n"));
}

}  // namespace expertmesh
