#pragma once

// Memory that two processes of one user on one host map both.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// One process creates it and sends the other its offer, by whatever way they
// talk; the other opens it. The memory is in no folder: it lasts as long as
// somebody maps it, or its creator lets others open it, so that nothing is left
// behind however they end. Its size cannot be changed, so touching it never
// faults. Whatever is in it may be changed by the peer at any time.
// Movable; not thread-safe.
class SharedMemory {
 public:
  // `size` bytes of zeros. Errors: UNAVAILABLE, with the system's reason.
  static absl::StatusOr<SharedMemory> Create(size_t size);

  // Maps what a peer offers. The offer may come from anywhere: it is opened
  // only where it names memory of this very host, of processes that can see one
  // another, of this user, `size` bytes long, and only used where the secret of
  // the offer is in it. Errors: UNAVAILABLE, saying which of this failed.
  static absl::StatusOr<SharedMemory> Open(absl::string_view offer,
                                           size_t size);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  // Of the creator: printable, without spaces. Worthless after Withdraw.
  std::string Offer() const;
  // Nobody else can open it any more.
  void Withdraw();

  // Page-aligned; behind the secret, `size` bytes.
  std::byte* data() const { return static_cast<std::byte*>(map_) + kDataAt; }

 private:
  using Secret = std::array<uint64_t, 2>;
  static constexpr size_t kDataAt = 4096;

  SharedMemory() = default;
  absl::Status Map(int file, size_t size);

  void* map_ = nullptr;
  size_t map_size_ = 0;
  int file_ = -1;  // open until Withdraw; only the creator's
  Secret secret_ = {};
};

}  // namespace expertmesh
