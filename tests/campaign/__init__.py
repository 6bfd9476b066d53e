"""Trials that fastuiat has to hold against: killed, filled, cut, flipped and misled."""
