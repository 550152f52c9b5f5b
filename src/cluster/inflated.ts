/**
 * Compressed clusters that this thread has inflated lately, of all images: readers in small steps meet each of them many times.
 *
 * A place may hold another stream later, but not before every request has ended that began before it was dropped, and the
 * drop began a new generation of the mapping. So what one request has inflated is right for all that began in its generation.
 */
import type { ImageState } from '../shared/image-state';
import { MIB } from '../units';

/** Bytes; one cluster is kept even if it is larger. */
const LIMIT = 2 * MIB;

interface Inflated {
  state: ImageState;
  generation: number;
  /** Host offset of the stream. */
  offset: number;
  cluster: Uint8Array;
}

/** The one used longest ago comes first. */
const kept: Inflated[] = [];
let bytes = 0;

/** @param inflate fills the whole cluster; a failure keeps nothing */
export function inflatedCluster(
  state: ImageState,
  offset: number,
  clusterSize: number,
  inflate: (cluster: Uint8Array) => void,
): Uint8Array {
  const { generation } = state.records;
  for (let i = kept.length - 1; i >= 0; i--) {
    const found = kept[i];
    if (found.offset !== offset || found.state !== state || found.generation !== generation) continue;
    if (i < kept.length - 1) kept.push(...kept.splice(i, 1));
    return found.cluster;
  }
  const cluster = roomFor(clusterSize);
  inflate(cluster);
  kept.push({ state, generation, offset, cluster });
  bytes += clusterSize;
  return cluster;
}

function roomFor(clusterSize: number): Uint8Array {
  let room: Uint8Array | undefined;
  while (kept.length > 0 && bytes + clusterSize > LIMIT) {
    room = kept.shift()?.cluster;
    bytes -= room?.length ?? 0;
  }
  return room?.length === clusterSize ? room : new Uint8Array(clusterSize);
}
