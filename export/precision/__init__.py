"""Half-precision graphs: conversion, emulation of their rounding, and the search for islands."""
