#include "router_service/api/response_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "router_service/api/request_translator.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string LoggedRefusal(absl::string_view request_id,
                          const absl::Status& status) {
  ::testing::internal::CaptureStderr();
  LogRefused(Method::kGenerate, request_id, status);
  return ::testing::internal::GetCapturedStderr();
}

TEST(LogRefusedTest, NamesTheRequest) {
  EXPECT_THAT(LoggedRefusal("mine", absl::InvalidArgumentError("no")),
              HasSubstr("warning expertmesh: request refused request_id=mine "
                        "method=generate code=INVALID_ARGUMENT error=no"));
  EXPECT_THAT(LoggedRefusal(std::string(kMaxRequestIdBytes + 1, 'x'),
                            absl::InvalidArgumentError("no")),
              HasSubstr("request_id=\"\""));
}

TEST(LogRefusedTest, ShowsNoTokensOfThePrompt) {
  RequestTranslator::Options options;
  options.vocab_size = 320;
  options.max_context_tokens = 256;
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  request.mutable_token_ids()->add_ids(987654);
  const absl::Status status =
      RequestTranslator(options, nullptr).Translate(request).status();
  const std::string line = LoggedRefusal("mine", status);
  EXPECT_THAT(line, HasSubstr("token 2 of the prompt is outside the "
                              "vocabulary of 320"));
  EXPECT_THAT(line, Not(HasSubstr("987654")));
}

TEST(LogFinishedTest, SuccessesDoNotCrowdOutFaults) {
  Sequence sequence;
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 300; ++i) {
    sequence.request.request_id = absl::StrCat("ok", i);
    LogFinished(Method::kScore, sequence, absl::OkStatus(),
                absl::ZeroDuration());
  }
  sequence.request.request_id = "fault";
  LogFinished(Method::kScore, sequence, absl::InternalError("x"),
              absl::ZeroDuration());
  const std::string lines = ::testing::internal::GetCapturedStderr();
  // A burst of a hundred passes, whatever comes in one instant.
  EXPECT_THAT(lines, HasSubstr("request_id=ok99 "));
  EXPECT_THAT(lines, Not(HasSubstr("request_id=ok299 ")));
  EXPECT_THAT(lines, HasSubstr("request_id=fault "));
}

}  // namespace
}  // namespace expertmesh::router
