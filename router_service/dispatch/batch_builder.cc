#include "router_service/dispatch/batch_builder.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "services/linalg/activation_row.h"
#include "services/wire/batch_codec.h"

namespace expertmesh::router {
namespace {

constexpr int32_t kNotInMessage = -1;

}  // namespace

BatchBuilder::BatchBuilder(const Options& options)
    : options_(options),
      local_index_(options.max_tokens),
      is_needed_(options.max_tokens, 0),
      row_in_message_(options.max_tokens * options.top_k, kNotInMessage) {}

void BatchBuilder::Begin(const Source& source,
                         absl::Span<const uint32_t> wanted,
                         std::vector<RowPiece>* pieces) {
  source_ = source;
  pieces_ = pieces;
  wanted_.assign(wanted.begin(), wanted.end());
  std::sort(wanted_.begin(), wanted_.end(), [&](uint32_t a, uint32_t b) {
    const RowPiece& x = (*pieces)[a];
    const RowPiece& y = (*pieces)[b];
    return std::tie(x.expert_id, x.first_row) <
           std::tie(y.expert_id, y.first_row);
  });
  CollectTokens();
}

void BatchBuilder::CollectTokens() {
  const std::vector<uint32_t>& row_token = source_.plan->row_token;
  uint32_t end_token = 0;
  for (const uint32_t index : wanted_) {
    const RowPiece& piece = (*pieces_)[index];
    for (uint32_t row = piece.first_row; row < piece.last_row; ++row) {
      is_needed_[row_token[row]] = 1;
      end_token = std::max(end_token, row_token[row] + 1);
    }
  }
  tokens_.clear();
  first_ = last_ = 0;
  for (uint32_t token = 0; token < end_token; ++token) {
    if (!is_needed_[token]) continue;
    is_needed_[token] = 0;
    local_index_[token] = static_cast<uint32_t>(tokens_.size());
    tokens_.push_back(token);
  }
}

bool BatchBuilder::Next(BatchAttempt* attempt) {
  if (last_ == tokens_.size()) return false;
  const size_t token_bytes =
      RowBytes(options_.wire_dtype, options_.hidden_size);
  const size_t most =
      std::max<size_t>(1, options_.max_message_bytes / token_bytes);
  first_ = last_;
  last_ = std::min(tokens_.size(), first_ + most);
  rows_.clear();
  for (const uint32_t index : wanted_) {
    AddRows(index, tokens_[last_ - 1] + 1, attempt);
  }
  return true;
}

void BatchBuilder::FillBatch(bool may_sum, BatchAttempt* attempt) {
  if (may_sum) AskForSums(attempt);
  ExpertBatch& batch = attempt->batch;
  batch.layer = source_.layer;
  batch.dtype = options_.wire_dtype;
  batch.hidden_size = static_cast<uint32_t>(options_.hidden_size);
  batch.num_tokens = static_cast<uint32_t>(last_ - first_);
  batch.hidden_states = Gather();
  batch.expert_ids = attempt->expert_ids;
  batch.group_offsets = attempt->group_offsets;
  batch.row_token = attempt->row_token;
  batch.row_weight = attempt->row_weight;
  batch.row_sum = attempt->row_sum;
  batch.num_sums = static_cast<uint32_t>(attempt->sum_slots.size());
  AddTraces(attempt);
  batch.traceparents = attempt->traceparents;
}

void BatchBuilder::AddTraces(BatchAttempt* attempt) const {
  for (const TracedTokens& traced : source_.traced) {
    if (attempt->traceparents.size() == kMaxBatchTraces) return;
    const auto end = tokens_.begin() + last_;
    const auto token =
        std::lower_bound(tokens_.begin() + first_, end, traced.first);
    if (token == end || *token >= traced.last) continue;
    attempt->traceparents.push_back(traced.traceparent);
  }
}

void BatchBuilder::AskForSums(BatchAttempt* attempt) {
  for (size_t i = 0; i < rows_.size(); ++i) {
    row_in_message_[rows_[i]] = static_cast<int32_t>(i);
  }
  attempt->row_sum.assign(rows_.size(), kNoSum);
  for (size_t i = first_; i < last_; ++i) AskForSumsOf(tokens_[i], attempt);
  for (const uint32_t row : rows_) row_in_message_[row] = kNotInMessage;
  if (attempt->sum_slots.empty()) {
    attempt->row_sum.clear();
    return;
  }
  for (const uint32_t row : rows_) {
    attempt->row_weight.push_back(source_.plan->row_weight[row]);
  }
}

void BatchBuilder::AskForSumsOf(uint32_t token, BatchAttempt* attempt) {
  const int64_t top_k = options_.top_k;
  const int32_t* const rows = source_.plan->token_rows.data() + token * top_k;
  int64_t end;
  for (int64_t place = 0; place < top_k && rows[place] >= 0; place = end) {
    end = source_.groups->EndOfGroup(rows, top_k, place);
    // A weight that is not finite stays here: a message with one would be
    // refused as a whole, for the fault of one token.
    const auto can_be_added = [&](int32_t row) {
      return row_in_message_[row] != kNotInMessage &&
             std::isfinite(source_.plan->row_weight[row]);
    };
    if (!source_.sums->IsSmaller(end - place) ||
        !std::all_of(rows + place, rows + end, can_be_added)) {
      continue;
    }
    const auto sum = static_cast<uint32_t>(attempt->sum_slots.size());
    attempt->sum_slots.push_back(source_.sums->Slot(token, place));
    for (; place < end; ++place) {
      attempt->row_sum[row_in_message_[rows[place]]] = sum;
    }
  }
}

// The rows of a wanted piece with tokens below `end_token`. Rows of a piece
// ascend by token, so they are its head; the tail stays wanted.
void BatchBuilder::AddRows(uint32_t index, uint32_t end_token,
                           BatchAttempt* attempt) {
  RowPiece* piece = &(*pieces_)[index];
  const auto tokens = source_.plan->row_token.begin();
  const auto end = std::lower_bound(tokens + piece->first_row,
                                    tokens + piece->last_row, end_token);
  const auto end_row = static_cast<uint32_t>(end - tokens);
  const uint32_t first_row = piece->first_row;
  if (end_row == first_row || tokens_[first_] > tokens[end_row - 1]) {
    return;  // none of this part, or sent with an earlier one
  }
  if (end_row < piece->last_row) {
    // The head becomes a piece of its own, so that what is left keeps its name.
    RowPiece head = *piece;
    head.last_row = end_row;
    piece->first_row = end_row;
    index = static_cast<uint32_t>(pieces_->size());
    pieces_->push_back(std::move(head));
    piece = &pieces_->back();
  }
  const auto expert_id = static_cast<uint32_t>(piece->expert_id);
  if (attempt->expert_ids.empty() || attempt->expert_ids.back() != expert_id) {
    attempt->expert_ids.push_back(expert_id);
    attempt->group_offsets.push_back(0);
  }
  const auto first_index = static_cast<uint32_t>(first_);
  for (uint32_t row = first_row; row < end_row; ++row) {
    attempt->row_token.push_back(local_index_[tokens[row]] - first_index);
    rows_.push_back(row);
  }
  attempt->group_offsets.back() =
      static_cast<uint32_t>(attempt->row_token.size());
  attempt->pieces.push_back(index);
}

PayloadRef BatchBuilder::Gather() {
  const int64_t hidden = options_.hidden_size;
  const size_t row_bytes = RowBytes(options_.wire_dtype, hidden);
  PayloadRef payload = payloads_.Acquire((last_ - first_) * row_bytes);
  std::byte* to = payload.data();
  for (size_t i = first_; i < last_; ++i, to += row_bytes) {
    StoreRow(source_.hidden_states + tokens_[i] * hidden, hidden,
             options_.wire_dtype, to);
  }
  return payload;
}

}  // namespace expertmesh::router
