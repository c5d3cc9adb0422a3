#include "services/cli/response_json.h"

#include <google/protobuf/util/json_util.h>

#include <nlohmann/json.hpp>

namespace expertmesh {

std::string ResponseJson(const v1::GenerateResponse& response) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(response, &text, options)
           .ok()) {
    return "{}";
  }
  // Protobuf can print all empty fields or none.
  auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  if (response.prompt_logprobs().empty()) json.erase("promptLogprobs");
  if (response.expert_counts().empty()) json.erase("expertCounts");
  if (response.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
    json.erase("finishReason");
    json.erase("seed");
  }
  return json.dump(-1, ' ', false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace expertmesh
