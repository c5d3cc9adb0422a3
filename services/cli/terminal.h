#pragma once

// What is drawn on a terminal.

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Writes all of `text` to standard output or standard error at once.
void WriteOut(absl::string_view text);
// INTERNAL, with the reason if it is known, once a write to standard output has
// failed, by WriteOut or otherwise. Loops ask, so that they end when nobody can
// read.
absl::Status OutStatus();
void WriteErr(absl::string_view text);

// Shows what goes on while standard error is a terminal; there it is one line
// that the next one replaces, and an empty one takes away.
void ShowProgress(absl::string_view text);

// Columns of the terminal `fd` is, or 80; 0 rows where it is none.
struct TerminalSize {
  size_t columns = 80;
  size_t rows = 0;
};
TerminalSize SizeOfTerminal(int fd);

// A line on standard error that stays below text streaming to standard output
// while both are the same terminal. Elsewhere it is printed once, at the end.
class LiveLine {
 public:
  LiveLine();

  bool live() const { return live_; }
  size_t width() const { return width_; }

  // Takes the line away; call before text is written.
  void Erase();
  // Draws the line below the cursor, which stays where it is.
  void Draw(absl::string_view line);
  // Leaves the line below all text.
  void Finish(absl::string_view line);

 private:
  bool live_;
  size_t width_;
};

}  // namespace expertmesh
