#!/bin/sh
kubectl create configmap seeded --from-literal=by="$WHO" --dry-run=client -o yaml | kubectl apply -f -
