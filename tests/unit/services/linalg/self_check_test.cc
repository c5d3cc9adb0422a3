#include "services/linalg/self_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/linalg/isa/isa_choice.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

using ::testing::HasSubstr;

PackedMatrix Matrix(WeightFormat format) {
  const TypedValues w(RandomFloats(130 * 100, 1), DType::kF32);
  return *PackedMatrix::Pack(w.View(130, 100), format);
}

TEST(SelfCheckTest, EveryKernelOfThisMachinePasses) {
  for (const Isa isa : AvailableIsas()) {
    const ScopedIsa scoped(isa);
    for (const WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8,
          WeightFormat::kInt4}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const absl::Status status = CheckRowsAgree(Matrix(format), dtype);
        EXPECT_TRUE(status.ok()) << status;
      }
    }
  }
}

TEST(SelfCheckTest, RandomWeightsStandForThoseToCome) {
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16,
        WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const int64_t n : {7, 64, 130}) {
      const absl::Status status = CheckRowsAgree(format, n, 96, DType::kF32);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

// A library that takes another way for one row, and is off by one bit there.
TEST(SelfCheckTest, FindsOneBitInTheLastPanel) {
  const auto product = [](const ActivationView& x, int64_t num_rows,
                          const PackedMatrix& w, int64_t panel, float* y,
                          int64_t y_stride) {
    GemmPanel(x, num_rows, w, panel, y, y_stride);
    if (num_rows == 1 && panel == 2) y[1] = std::nextafter(y[1], 1e9f);
  };
  const absl::Status status =
      CheckRowsAgree(Matrix(WeightFormat::kBF16), DType::kBF16, product);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("[130, 100] bf16"));
}

// The bf16 kernel of the fastest table, off by one bit where a row is alone.
class BrokenKernelTest : public ::testing::Test {
 protected:
  BrokenKernelTest()
      : isas_(CandidateIsas("")),
        broken_(*KernelsFor(isas_.front())),
        scoped_(isas_.front()) {
    intact_ = KernelsFor(isas_.front());
    broken_.gemm_panel[1][1] = Multiply;
    SetKernelsForTest(isas_.front(), &broken_);
  }
  ~BrokenKernelTest() override {
    SetKernelsForTest(isas_.front(), intact_);
    intact_ = nullptr;
  }

  static void Multiply(const GemmPanelArgs& args) {
    intact_->gemm_panel[1][1](args);
    if (args.num_rows == 1) args.y[0] = std::nextafter(args.y[0], 1e9f);
  }

  static absl::Status Check() {
    return CheckRowsAgree(Matrix(WeightFormat::kBF16), DType::kBF16);
  }

  static inline const Kernels* intact_ = nullptr;
  const std::vector<Isa> isas_;
  Kernels broken_;
  const ScopedIsa scoped_;
};

TEST_F(BrokenKernelTest, TheNextInstructionSetTakesOver) {
  if (isas_.size() == 1) GTEST_SKIP() << "only one instruction set here";
  ASSERT_EQ(Check().code(), absl::StatusCode::kInternal);
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(UseIsaThatPasses(isas_, Check).ok());
  const std::string log = ::testing::internal::GetCapturedStderr();

  EXPECT_EQ(ActiveIsa(), isas_[1]);
  // As the services announce it in their numerics_id.
  EXPECT_NE(SumOrder(WeightFormat::kBF16), "tiles");
  const auto name = [&](int i) { return std::string(IsaNameOf(isas_[i])); };
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  EXPECT_THAT(log, HasSubstr("failed=" + name(0)));
  EXPECT_THAT(log, HasSubstr("using=" + name(1)));
}

TEST_F(BrokenKernelTest, ADemandedOneIsRefused) {
  const std::vector<Isa> demanded = CandidateIsas(IsaNameOf(isas_.front()));
  ASSERT_THAT(demanded, ::testing::ElementsAre(isas_.front()));
  const absl::Status status = UseIsaThatPasses(demanded, Check);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("EXPERTMESH_ISA may name another"));
}

TEST(SelfCheckTest, NoneThatPassesIsAnError) {
  const ScopedIsa scoped(Isa::kPortable);
  const std::vector<Isa> isas = CandidateIsas("");
  std::vector<Isa> tried;
  const absl::Status status = UseIsaThatPasses(isas, [&] {
    tried.push_back(ActiveIsa());
    return absl::InternalError(absl::StrCat("broken ", IsaName()));
  });
  EXPECT_EQ(tried, isas);
  EXPECT_THAT(status.message(),
              HasSubstr(absl::StrCat("broken ", IsaNameOf(isas.front()))));
}

TEST(SelfCheckTest, ANameThatThisCpuLacksDemandsNothing) {
  EXPECT_EQ(CandidateIsas("quantum"), CandidateIsas(""));
  EXPECT_EQ(CandidateIsas("").back(), Isa::kPortable);
}

TEST(SelfCheckTest, NothingToMultiply) {
  EXPECT_TRUE(CheckRowsAgree(PackedMatrix(), DType::kF32).ok());
}

}  // namespace
}  // namespace expertmesh
