/** The contract of a block node, for qcow (version 1) images in chains. */
import test from 'ava';
import { GIB, KIB, MIB } from '../../src/units';
import { nodeSuite, qcowSpans } from '../helpers/node-suite';

const qcow = (clusterSize: number, size: number) => ({ format: 'qcow', clusterSize, size }) as const;
const raw = (size: number) => ({ format: 'raw', size }) as const;

nodeSuite(test, {
  name: 'qcow 4 KiB',
  layers: [qcow(4 * KIB, 3 * 2 * MIB + 5 * 512)],
  spans: qcowSpans(4 * KIB, false),
  longest: 4 * KIB,
});

nodeSuite(test, {
  name: 'qcow 1 KiB over longer raw',
  layers: [qcow(KIB, 8 * MIB + 3 * 512), raw(9 * MIB)],
  spans: qcowSpans(KIB, true),
  longest: KIB,
});

nodeSuite(test, {
  name: 'qcow 64 KiB over shorter qcow over qed',
  layers: [
    qcow(64 * KIB, 300 * MIB + 512),
    qcow(4 * KIB, 250 * MIB + 3 * 512),
    { format: 'qed', clusterSize: 64 * KIB, tableSize: 1, size: 400 * MIB },
  ],
  spans: qcowSpans(64 * KIB, true),
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qcow 64 KiB, many slices of L1',
  layers: [qcow(64 * KIB, 200 * GIB)],
  spans: qcowSpans(64 * KIB, false),
  longest: 64 * KIB,
});
