#pragma once

// What came back instead of rows (stop 5d).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "services/core/dtype.h"
#include "services/linalg/buffer.h"

namespace expertmesh::router {

// The sums [hidden_size] f32 of those tokens' combine groups that an endpoint
// has added up. One that is here is of all rows that its token has of the
// group. Different sums may be filled in by different threads at a time.
class PartialSums {
 public:
  struct Options {
    DType wire_dtype = DType::kF32;
    int64_t group_size = 1;
    int64_t max_tokens = 0;
    int64_t top_k = 0;
    int64_t hidden_size = 0;
  };
  explicit PartialSums(const Options& options)
      : hidden_size_(options.hidden_size),
        // So many take more bytes than their sum, and two at least.
        min_rows_(std::max<int64_t>(
            2, options.hidden_size * sizeof(float) /
                       RowBytes(options.wire_dtype, options.hidden_size) +
                   1)),
        per_token_(std::min(options.group_size, options.top_k) / min_rows_ > 0
                       ? options.top_k / min_rows_
                       : 0),
        from_(options.max_tokens * per_token_, kNobody),
        sums_(from_.size() * options.hidden_size * sizeof(float)) {}

  // Whether a sum is worth asking for: it is smaller than so many rows.
  bool IsSmaller(int64_t num_rows) const { return num_rows >= min_rows_; }
  // No group can have as many rows.
  bool IsNeverSmaller() const { return per_token_ == 0; }

  // The place of the sum of the group whose rows begin at `place` of its
  // token's token_rows. Requires: IsSmaller.
  uint32_t Slot(int64_t token, int64_t place) const {
    // Each such group has min_rows_ places or more to itself.
    return static_cast<uint32_t>(token * per_token_ + place / min_rows_);
  }

  // None is here.
  void Clear() { std::fill(from_.begin(), from_.end(), kNobody); }
  std::byte* data(uint32_t slot) {
    return sums_.data() + slot * hidden_size_ * sizeof(float);
  }
  // It is here, as `endpoint` added it up.
  void SetHere(uint32_t slot, int endpoint) { from_[slot] = endpoint; }

  // The sum of the group at places [place, end), null where it is not here.
  const float* Find(int64_t token, int64_t place, int64_t end) const {
    if (per_token_ == 0 || !IsSmaller(end - place)) return nullptr;
    const uint32_t slot = Slot(token, place);
    return from_[slot] == kNobody ? nullptr
                                  : sums_.as<float>() + slot * hidden_size_;
  }
  // The endpoint that added up the sum of the group that begins at `place`.
  // Requires: it is here.
  int Endpoint(int64_t token, int64_t place) const {
    return from_[Slot(token, place)];
  }
  // Requires: it is here.
  void Forget(int64_t token, int64_t place) {
    from_[Slot(token, place)] = kNobody;
  }

 private:
  static constexpr int kNobody = -1;  // it is not here

  const int64_t hidden_size_;
  const int64_t min_rows_;
  const int64_t per_token_;  // groups that have so many rows, at most
  std::vector<int> from_;    // [max_tokens, per_token_] endpoints
  Buffer sums_;              // [max_tokens, per_token_, hidden_size] f32
};

}  // namespace expertmesh::router
