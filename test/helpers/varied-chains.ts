/** Disks whose bytes come from everywhere: data of their own, zeroes, a backing file, compressed clusters, a snapshot. */
import type { ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { attachChain } from '../../src/block/open';
import { openSnapshot, takeSnapshot } from '../../src/block/snapshots';
import type { Storage, StorageDescriptor } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { type ChainConfig, makeChain, type Shadowed } from './shadowed';

/** Bytes; no multiple of any cluster. */
export const VARIED_SIZE = 4 * MIB + 512;

type VariedConfig = ChainConfig & { compressed?: true; snapshot?: true };

export const VARIED_CHAINS: VariedConfig[] = [
  { name: 'raw', layers: [{ format: 'raw', size: VARIED_SIZE }] },
  {
    name: 'qed over a shorter raw',
    layers: [
      { format: 'qed', size: VARIED_SIZE, clusterSize: 4 * KIB, tableSize: 1 },
      { format: 'raw', size: 3 * MIB },
    ],
  },
  {
    name: 'qcow2 with subclusters and compressed clusters over qcow2',
    compressed: true,
    layers: [
      { format: 'qcow2', size: VARIED_SIZE, clusterSize: 64 * KIB, extendedL2: true },
      { format: 'qcow2', size: VARIED_SIZE + MIB, clusterSize: 4 * KIB },
    ],
  },
  {
    name: 'a snapshot of qcow2 over qcow',
    snapshot: true,
    layers: [
      { format: 'qcow2', size: VARIED_SIZE, clusterSize: 4 * KIB },
      { format: 'qcow', size: VARIED_SIZE },
    ],
  },
];

/**
 * Makes one of them.
 * @param attach opens the storages of another thread
 * @returns `node`: that thread's view of it
 */
export function makeVaried(
  t: ExecutionContext,
  config: VariedConfig,
  attach: (layer: StorageDescriptor) => Storage,
): { node: BlockNode; shadow: Shadowed } {
  const { image, shadow } = makeChain(t, config, (size) => [
    { offset: 0, length: MIB },
    { offset: MIB + 100 * KIB, length: size - MIB - 100 * KIB },
  ]);
  shadow.write(512 * KIB, 300 * KIB);
  shadow.writeZeroes(700 * KIB, 10 * KIB);
  shadow.write(2 * MIB + 5, 64 * KIB);
  if (config.compressed) shadow.writeCompressed(3 * MIB, 256 * KIB);
  const snapshot = config.snapshot ? takeSnapshot(image.node, 'before') : undefined;
  if (snapshot) shadow.write(0, MIB);
  const live = attachChain(image.describe(), 2, attach);
  return { node: snapshot ? openSnapshot(live, snapshot.id) : live, shadow };
}
