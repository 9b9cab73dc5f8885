"""The network device class: NVSP and RNDIS, their server and client, and the switch behind them."""
