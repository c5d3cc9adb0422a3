#include "services/wire/local_link.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "services/core/mutex.h"
#include "services/wire/batch_codec.h"
#include "services/wire/link_readers.h"

namespace expertmesh {
namespace {

using Received = LocalLink::Received;

grpc::ByteBuffer Message(const std::string& text, size_t num_slices = 1) {
  std::vector<grpc::Slice> slices;
  const size_t part = text.size() / num_slices;
  for (size_t i = 0; i < num_slices; ++i) {
    slices.emplace_back(
        text.substr(i * part, i + 1 < num_slices ? part : std::string::npos));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Text(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

std::string Pattern(size_t size) {
  std::string text(size, 0);
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * i >> 7);
  return text;
}

// Longer than messages may be. Its length is written, and what fits of it.
grpc::ByteBuffer TooLongMessage() {
  constexpr size_t kSliceBytes = size_t{1} << 20;
  const std::vector<grpc::Slice> slices(kMaxMessageBytes / kSliceBytes + 1,
                                        grpc::Slice(Pattern(kSliceBytes)));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

class LocalLinkTest : public testing::Test {
 protected:
  LocalLinkTest() {
    near_ = *LocalLink::Create();
    far_ = *LocalLink::Open(near_->Offer());
    EXPECT_FALSE(near_->IsAccepted());
    far_->Accept();
    EXPECT_TRUE(near_->IsAccepted());
  }
  std::shared_ptr<LocalLink> near_, far_;
};

TEST_F(LocalLinkTest, MessagesOfAnyFormBothWays) {
  for (LocalLink* from : {near_.get(), far_.get()}) {
    LocalLink* to = from == near_.get() ? far_.get() : near_.get();
    grpc::ByteBuffer message;
    EXPECT_EQ(to->Read(&message), Received::kNothing);
    EXPECT_TRUE(from->Write(Message("")));
    EXPECT_TRUE(from->Write(Message("one")));
    EXPECT_TRUE(from->Write(Message(Pattern(70'000), 3)));
    EXPECT_TRUE(to->HasNews());
    for (const std::string& text :
         {std::string(), std::string("one"), Pattern(70'000)}) {
      ASSERT_EQ(to->Read(&message), Received::kMessage);
      EXPECT_EQ(Text(message), text);
    }
    EXPECT_EQ(to->Read(&message), Received::kNothing);
    EXPECT_FALSE(to->HasNews());
  }
}

TEST_F(LocalLinkTest, MessagesLargerThanTheMemoryGoThroughInTurns) {
  const std::string large = Pattern(20 << 20);
  bool is_written = near_->Write(Message(large, 2));
  EXPECT_FALSE(is_written);
  EXPECT_FALSE(near_->HasNews());  // no room yet
  grpc::ByteBuffer message;
  while (far_->Read(&message) != Received::kMessage) {
    ASSERT_TRUE(near_->HasNews());
    ASSERT_FALSE(is_written);
    is_written = near_->Resume();
  }
  EXPECT_TRUE(is_written);
  EXPECT_TRUE(Text(message) == large);
  EXPECT_TRUE(near_->Write(Message("next")));
  ASSERT_EQ(far_->Read(&message), Received::kMessage);
  EXPECT_EQ(Text(message), "next");
}

// Reads all that comes, on its own thread or whoever looks.
class Inbox {
 public:
  explicit Inbox(std::shared_ptr<LocalLink> link)
      : link_(std::move(link)),
        reader_(std::make_shared<LinkReader>(link_, [this] {
          if (link_->IsFull()) link_->Resume();
          grpc::ByteBuffer message;
          if (link_->Read(&message) != Received::kMessage) return false;
          MutexLock lock(&mutex_);
          bytes_ += message.Length();
          ++messages_;
          changed_.NotifyAll();
          return true;
        })) {
    EXPECT_TRUE(reader_->Start().ok());
  }
  bool Has(int messages) {
    MutexLock lock(&mutex_);
    return messages_ >= messages;
  }
  void Await(int messages) {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(changed_.WaitFor(lock, absl::Seconds(30),
                                 [&] { return messages_ >= messages; }));
  }
  size_t bytes() {
    MutexLock lock(&mutex_);
    return bytes_;
  }
  const std::shared_ptr<LinkReader>& reader() { return reader_; }

 private:
  const std::shared_ptr<LocalLink> link_;
  Mutex mutex_;
  CondVar changed_;
  size_t bytes_ = 0;
  int messages_ = 0;
  std::shared_ptr<LinkReader> reader_;
};

TEST_F(LocalLinkTest, ASleepingReaderIsWoken) {
  Inbox inbox(far_);
  for (int i = 1; i <= 2000; ++i) {
    ASSERT_TRUE(near_->Write(Message("hello")));
    inbox.Await(i);
  }
  EXPECT_EQ(inbox.bytes(), 10'000u);
}

TEST_F(LocalLinkTest, AFullLinkGoesOnWhenThereIsRoom) {
  Inbox there(far_), here(near_);
  ASSERT_FALSE(near_->Write(Message(Pattern(50 << 20))));
  there.Await(1);
  EXPECT_EQ(there.bytes(), size_t{50} << 20);
}

TEST_F(LocalLinkTest, WhoeverLooksBrieflyMissesNothing) {
  LinkReaders readers;
  EXPECT_TRUE(readers.AwaitBriefly([] { return true; }));
  EXPECT_FALSE(readers.AwaitBriefly([] { return false; }));
  Inbox inbox(far_);
  readers.Add(inbox.reader());
  std::thread sender([&] {
    for (int i = 0; i < 2000; ++i) near_->Write(Message("hello"));
  });
  for (int i = 1; i <= 2000; ++i) {
    if (!readers.AwaitBriefly([&] { return inbox.Has(i); })) inbox.Await(i);
  }
  sender.join();
  readers.Remove(inbox.reader().get());
  EXPECT_FALSE(readers.AwaitBriefly([] { return false; }));
}

TEST_F(LocalLinkTest, StopsWhileAnotherThreadLooks) {
  LinkReaders readers;
  for (int i = 0; i < 200; ++i) {
    Inbox inbox(far_);
    readers.Add(inbox.reader());
    std::thread looker([&] { readers.AwaitBriefly([] { return false; }); });
    inbox.reader()->Stop();
    readers.Remove(inbox.reader().get());
    looker.join();
  }
}

// Neither who looks briefly nor who stops waits until a peer that never ends is
// read, or for a thread that reads.
TEST_F(LocalLinkTest, ABusyLinkHoldsNobodyUp) {
  Mutex mutex;
  CondVar changed;
  bool is_reading = false, may_go_on = false;
  const auto reader = std::make_shared<LinkReader>(far_, [&] {
    MutexLock lock(&mutex);
    is_reading = true;
    changed.NotifyAll();
    changed.Wait(lock, [&] { return may_go_on; });
    return true;  // there is always more
  });
  ASSERT_TRUE(reader->Start().ok());
  {
    MutexLock lock(&mutex);
    changed.Wait(lock, [&] { return is_reading; });
  }
  LinkReaders readers;
  readers.Add(reader);
  near_->Write(Message("news"));
  EXPECT_FALSE(readers.AwaitBriefly([] { return false; }));
  {
    MutexLock lock(&mutex);
    may_go_on = true;
    changed.NotifyAll();
  }
  EXPECT_FALSE(readers.AwaitBriefly([] { return false; }));
  reader->Stop();
  readers.Remove(reader.get());
}

TEST_F(LocalLinkTest, RoomIsNoNewsForAMessageGivenUp) {
  EXPECT_FALSE(near_->Write(Message(Pattern(20 << 20))));
  near_->Abandon();
  EXPECT_FALSE(near_->IsFull());
  grpc::ByteBuffer message;
  EXPECT_EQ(far_->Read(&message), Received::kNothing);  // which makes room
  EXPECT_FALSE(near_->HasNews());
}

TEST_F(LocalLinkTest, NoThreadToReadIt) {
  pthread_attr_t usual, huge;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_attr_init(&huge), 0);
  // No address space has room for such a stack.
  ASSERT_EQ(pthread_attr_setstacksize(&huge, size_t{1} << 50), 0);
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);
  LinkReader reader(far_, [] { return false; });
  const absl::Status started = reader.Start();
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
  EXPECT_EQ(started.code(), absl::StatusCode::kUnavailable);
}

TEST_F(LocalLinkTest, OnlyOneOpensIt) {
  const auto other = LocalLink::Open(near_->Offer());
  EXPECT_EQ(other.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(LocalLinkTest, HeldReadingIsNoNews) {
  near_->Write(Message("later"));
  far_->HoldReading();
  EXPECT_FALSE(far_->HasNews());
  far_->GoOnReading();
  EXPECT_TRUE(far_->HasNews());
}

// Only the first look sees the length: what follows it is bytes of a message
// that nobody keeps.
TEST_F(LocalLinkTest, ALengthBeyondAllMessagesIsGarbageForGood) {
  near_->Write(TooLongMessage());
  grpc::ByteBuffer message;
  for (int look = 0; look < 3; ++look) {
    EXPECT_EQ(far_->Read(&message), Received::kGarbage);
    EXPECT_FALSE(far_->HasNews());
    far_->GoOnReading();
  }
}

TEST_F(LocalLinkTest, GarbageAfterAMessageIsGarbageForGood) {
  near_->Write(Message("good"));
  near_->Write(TooLongMessage());
  grpc::ByteBuffer message;
  ASSERT_EQ(far_->Read(&message), Received::kMessage);
  EXPECT_EQ(Text(message), "good");
  for (int look = 0; look < 3; ++look) {
    EXPECT_EQ(far_->Read(&message), Received::kGarbage);
    EXPECT_FALSE(far_->HasNews());
    far_->GoOnReading();
  }
}

}  // namespace
}  // namespace expertmesh
