"""What people meet: conversion of files, pictures, models. No plugin knows another."""
