/** The contract of a block node, for qcow2 images in chains, over geometries and features that change where boundaries lie. */
import test from 'ava';
import { GIB, KIB, MIB } from '../../src/units';
import type { ImageSpec } from '../helpers/images';
import { nodeSuite, qcow2Spans } from '../helpers/node-suite';

const qcow2 = (clusterSize: number, size: number, more: Partial<ImageSpec> = {}) =>
  ({ ...more, format: 'qcow2', clusterSize, size }) as const;
const raw = (size: number) => ({ format: 'raw', size }) as const;

nodeSuite(test, {
  name: 'qcow2 64 KiB',
  layers: [qcow2(64 * KIB, 1100 * MIB + 5 * 512)],
  spans: qcow2Spans(64 * KIB),
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qcow2 1 KiB, refcounts of 64 bits, over longer raw',
  layers: [qcow2(KIB, 300 * KIB + 512, { refcountBits: 64 }), raw(320 * KIB)],
  spans: qcow2Spans(KIB),
  longest: KIB,
});

nodeSuite(test, {
  name: 'qcow2 version 2, 4 KiB, over shorter qcow2',
  layers: [qcow2(4 * KIB, 6 * MIB + 512, { version: 2 }), qcow2(64 * KIB, 5 * MIB + 512)],
  spans: qcow2Spans(4 * KIB),
  longest: 4 * KIB,
});

nodeSuite(test, {
  name: 'qcow2 64 KiB with subclusters over raw',
  layers: [qcow2(64 * KIB, 300 * MIB + 512, { extendedL2: true }), raw(301 * MIB)],
  spans: qcow2Spans(64 * KIB, true),
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qcow2 2 MiB with subclusters',
  layers: [qcow2(2 * MIB, 600 * GIB, { extendedL2: true, refcountBits: 1 })],
  spans: qcow2Spans(2 * MIB, true),
  longest: 2 * MIB,
});
