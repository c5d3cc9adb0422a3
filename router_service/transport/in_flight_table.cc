#include "router_service/transport/in_flight_table.h"

#include <algorithm>

namespace expertmesh::router {

InFlightTable::Entry* InFlightTable::Add(const InFlightBatch& batch) {
  uint32_t index;
  if (free_.empty()) {
    index = static_cast<uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[index];
  entry.batch = batch;
  entry.batch.sequence_number = ++uses_ << kIndexBits | index;
  rows_ += batch.num_rows;
  return &entry;
}

InFlightTable::Entry* InFlightTable::Find(uint64_t sequence_number) {
  const uint64_t index = sequence_number & ((uint64_t{1} << kIndexBits) - 1);
  // Number 0, which free entries have, is never issued.
  if (index >= entries_.size() || sequence_number == 0) return nullptr;
  Entry& entry = entries_[index];
  return entry.batch.sequence_number == sequence_number ? &entry : nullptr;
}

bool InFlightTable::Take(uint64_t sequence_number, InFlightBatch* batch) {
  Entry* entry = Find(sequence_number);
  if (entry == nullptr) return false;
  *batch = entry->batch;
  Free(static_cast<uint32_t>(sequence_number &
                             ((uint64_t{1} << kIndexBits) - 1)));
  return true;
}

absl::Duration InFlightTable::TakeExpired(absl::Duration now,
                                          std::vector<InFlightBatch>* batches) {
  absl::Duration next = absl::InfiniteDuration();
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    const InFlightBatch& batch = entries_[i].batch;
    if (batch.sequence_number == 0) continue;
    if (batch.deadline <= now) {
      batches->push_back(batch);
      Free(i);
    } else {
      next = std::min(next, batch.deadline);
    }
  }
  return next;
}

bool InFlightTable::WasIssued(uint64_t sequence_number) const {
  const uint64_t use = sequence_number >> kIndexBits;
  const uint64_t index = sequence_number & ((uint64_t{1} << kIndexBits) - 1);
  return use > 0 && use <= uses_ && index < entries_.size();
}

void InFlightTable::Free(uint32_t index) {
  Entry& entry = entries_[index];
  rows_ -= entry.batch.num_rows;
  entry.batch = InFlightBatch();
  entry.message.Clear();
  free_.push_back(index);
}

}  // namespace expertmesh::router
