package netdev

// SetBridgeFlags is for tests that damage a bridge.
var SetBridgeFlags = setBridgeFlags
