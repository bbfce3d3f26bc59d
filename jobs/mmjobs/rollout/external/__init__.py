"""An external engine: servers that generate answers with the policy's weights, and what speaks to them."""
