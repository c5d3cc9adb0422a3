#include "services/wire/link_readers.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/clock.h"
#include "services/core/spin.h"

namespace expertmesh {
namespace {

// Between two looks at the clock, after each of which the peer may have the
// core.
constexpr int kTurns = 16;

}  // namespace

LinkReader::LinkReader(std::shared_ptr<LocalLink> link,
                       std::function<bool()> read)
    : link_(std::move(link)), read_(std::move(read)) {}

LinkReader::~LinkReader() { Stop(); }

absl::Status LinkReader::Start() {
  try {
    thread_ = std::thread([this] { Loop(); });
  } catch (const std::system_error& error) {  // a limit of threads
    return absl::UnavailableError(
        absl::StrCat("no thread to read a link: ", error.what()));
  }
  return absl::OkStatus();
}

void LinkReader::Stop() {
  // Said before waiting, so that a thread that reads on and on hears of it.
  is_stopped_.store(true);
  { MutexLock until_read(&mutex_); }
  link_->bell().RingAll();
  if (thread_.joinable()) thread_.join();
}

bool LinkReader::Read() {
  MutexLock lock(&mutex_);
  return !is_stopped_.load() && read_();
}

bool LinkReader::TryRead() {
  if (!mutex_.TryLock()) return false;
  const bool any = !is_stopped_.load() && read_();
  mutex_.Unlock();
  return any;
}

void LinkReader::Loop() {
  while (!is_stopped_.load()) {
    if (Read()) continue;
    link_->bell().Arm();
    if (!HasNews()) link_->bell().Wait();
  }
}

void LinkReaders::Add(std::shared_ptr<LinkReader> reader) {
  MutexLock lock(&mutex_);
  auto changed = std::make_shared<List>(*readers_);
  changed->push_back(std::move(reader));
  readers_ = std::move(changed);
}

void LinkReaders::Remove(const LinkReader* reader) {
  MutexLock lock(&mutex_);
  auto changed = std::make_shared<List>(*readers_);
  std::erase_if(*changed, [&](const auto& own) { return own.get() == reader; });
  readers_ = std::move(changed);
}

std::shared_ptr<const LinkReaders::List> LinkReaders::Get() const {
  MutexLock lock(&mutex_);
  return readers_;
}

bool LinkReaders::AwaitBriefly(absl::FunctionRef<bool()> is_done) {
  const std::shared_ptr<const List> readers = Get();
  if (readers->empty()) return is_done();
  for (const auto& reader : *readers) reader->link_->bell().Disarm();
  const absl::Duration until = Clock::Real()->Now() + kBriefWait;
  bool done = false;
  for (int turn = 0; !done; ++turn) {
    bool any = turn % kTurns == 0;
    for (const auto& reader : *readers) {
      if (reader->link_->HasNews()) any |= reader->TryRead();
    }
    if (any) done = is_done();
    if (done || (turn % kTurns == 0 && Clock::Real()->Now() >= until)) break;
    SpinTurn(turn, kTurns);
  }
  for (const auto& reader : *readers) {
    reader->link_->bell().Arm();
    if (reader->HasNews()) reader->link_->bell().Ring();
  }
  return done;
}

}  // namespace expertmesh
