#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "router_service/dispatch/dispatcher.h"
#include "tests/unit/router_service/dispatch/fake_mesh.h"

namespace expertmesh::router {

inline constexpr int64_t kHidden = 4;
inline constexpr int64_t kMaxTokens = 512;

// Endpoints echo tokens, so a row must equal its token wherever it went.
class DispatcherTest : public ::testing::Test {
 protected:
  DispatcherTest() {
    options_.hidden_size = kHidden;
    options_.max_tokens = kMaxTokens;
    options_.top_k = 2;
    options_.uncovered_timeout = absl::Milliseconds(100);
    for (size_t i = 0; i < hidden_.size(); ++i) {
      hidden_[i] = static_cast<float>(i);
    }
  }
  ~DispatcherTest() override {
    for (int endpoint = 0; endpoint < 4; ++endpoint) mesh_.Release(endpoint);
  }

  // `replicas[e]`: the endpoints that hold expert e of layer 0.
  void Place(const std::vector<std::vector<int>>& replicas) {
    auto placement = std::make_shared<Placement>(1, kNumExperts);
    for (size_t expert = 0; expert < replicas.size(); ++expert) {
      for (const int endpoint : replicas[expert]) {
        placement->Add(0, static_cast<int64_t>(expert), endpoint);
      }
    }
    table_.Set(std::move(placement));
  }

  // Endpoint 1 has the mesh's numerics_id, endpoint 0 another; both hold expert
  // 0.
  void PlaceOfTwoNumerics() {
    auto placement = std::make_shared<Placement>(1, kNumExperts);
    placement->Add(0, 0, /*endpoint=*/0, /*is_preferred=*/false);
    placement->Add(0, 0, /*endpoint=*/1, /*is_preferred=*/true);
    table_.Set(std::move(placement));
  }

  // Every wave: tokens 0 … rows - 1 at each of `experts`.
  void Plan(const std::vector<int>& experts, int rows, int num_waves = 1) {
    plan_ = DispatchPlan();
    plan_.wave_groups = {0};
    for (int wave = 0; wave < num_waves; ++wave) {
      for (const int expert : experts) {
        const auto first = static_cast<uint32_t>(plan_.row_token.size());
        for (int token = 0; token < rows; ++token) {
          plan_.row_token.push_back(token);
          plan_.row_weight.push_back(1);
        }
        plan_.groups.push_back({expert, first, first + rows});
      }
      plan_.wave_groups.push_back(static_cast<uint32_t>(plan_.groups.size()));
    }
  }

  void Start() {
    dispatcher_ = std::make_unique<Dispatcher>(options_, &table_, &mesh_);
    ticket_ = std::make_unique<DispatchTicket>(options_);
  }
  void Exchange() {
    if (dispatcher_ == nullptr) Start();
    dispatcher_->BeginStep();
    ExchangeInStep();
  }
  void ExchangeInStep() {
    dispatcher_->Begin(0, hidden_.data(), plan_, ticket_.get(), may_mix_,
                       traced_);
    dispatcher_->Finish(ticket_.get(), must_wait_);
  }
  // So many exchanges that the endpoints' times are known.
  void Settle() {
    for (int i = 0; i < 40; ++i) {
      Exchange();
      ExpectEchoed();
    }
  }

  void ExpectEchoed() {
    ASSERT_TRUE(ticket_->failures().empty()) << ticket_->failures()[0].status;
    for (size_t row = 0; row < plan_.row_token.size(); ++row) {
      const auto* values =
          reinterpret_cast<const float*>(ticket_->outputs().rows) +
          row * kHidden;
      for (int64_t i = 0; i < kHidden; ++i) {
        ASSERT_EQ(values[i], hidden_[plan_.row_token[row] * kHidden + i])
            << "row " << row;
      }
    }
  }
  absl::StatusCode FailureCode() const {
    return ticket_->failures().empty() ? absl::StatusCode::kOk
                                       : ticket_->failures()[0].status.code();
  }

  static constexpr int64_t kNumExperts = 4;
  DispatcherOptions options_;
  DispatchPlan plan_;
  std::vector<uint8_t> may_mix_;  // [num_tokens], or empty: none
  std::vector<TracedTokens> traced_;
  std::vector<float> hidden_ = std::vector<float>(kMaxTokens * kHidden);
  PlacementTable table_{std::make_shared<Placement>(1, kNumExperts)};
  FakeMesh mesh_;
  std::function<bool(uint32_t)> must_wait_ = [](uint32_t) { return true; };
  std::unique_ptr<DispatchTicket> ticket_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

}  // namespace expertmesh::router
