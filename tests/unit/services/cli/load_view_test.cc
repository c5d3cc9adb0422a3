#include "services/cli/load_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(LoadView, ShowsHottestExpertsBalanceAndOutcomes) {
  admin::v1::GetExpertLoadResponse load;
  load.set_window_seconds(10);
  load.set_rows_primary(1234);
  load.set_rows_rerouted(56);
  admin::v1::LayerLoad* layer = load.add_layers();
  layer->set_layer(3);
  for (const uint64_t rows : {0, 30, 10, 0}) layer->add_rows(rows);
  const std::string view = LoadView(load, {}, 100);
  EXPECT_THAT(view, HasSubstr("1234 primary"));
  EXPECT_THAT(view, HasSubstr("56 rerouted"));
  // Mean 10, busiest 30.
  EXPECT_THAT(view, HasSubstr("0.33"));
  EXPECT_THAT(view, HasSubstr("1 (3.0x)  2 (1.0x)"));
  EXPECT_THAT(view, HasSubstr("·█▃·"));
}

TEST(LoadView, AnIdleLayerDividesByNothing) {
  admin::v1::GetExpertLoadResponse load;
  load.add_layers()->add_rows(0);
  load.add_layers();  // no rows at all
  const std::string view = LoadView(load, {}, 20);
  EXPECT_THAT(view, HasSubstr("idle"));
  EXPECT_THAT(view, Not(HasSubstr("nan")));
}

TEST(LoadView, SaysWhatIsWrongWithAnEndpoint) {
  admin::v1::ListEndpointsResponse endpoints;
  admin::v1::Endpoint* endpoint = endpoints.add_endpoints();
  endpoint->set_address("127.0.0.1:1");
  endpoint->set_state("refused");
  endpoint->set_reason("another checkpoint");
  endpoints.set_uncovered_slots(8);
  const std::string view = LoadView({}, endpoints, 80);
  EXPECT_THAT(view, HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(view, HasSubstr("another checkpoint"));
  EXPECT_THAT(view, HasSubstr("8 slots"));
}

TEST(HostedText, IsShortWhereLayersAreAlike) {
  admin::v1::Endpoint endpoint;
  EXPECT_EQ(HostedText(endpoint.hosted()), "nothing");
  for (const uint32_t layer : {0, 1}) {
    admin::v1::HostedExperts* hosted = endpoint.add_hosted();
    hosted->set_layer(layer);
    for (const uint32_t expert : {0, 1, 2, 7}) hosted->add_expert_ids(expert);
  }
  EXPECT_EQ(HostedText(endpoint.hosted()), "experts 0-2,7 of 2 layers");
  endpoint.mutable_hosted(1)->clear_expert_ids();
  endpoint.mutable_hosted(1)->add_expert_ids(5);
  EXPECT_EQ(HostedText(endpoint.hosted()),
            "experts 0-2,7 of layer 0; 5 of layer 1");
}

TEST(BytesText, ChoosesTheUnit) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(1023), "1023 B");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(BytesText(uint64_t{3} << 30), "3.0 GiB");
}

}  // namespace
}  // namespace expertmesh
