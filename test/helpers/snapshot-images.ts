/** Images of which every part differs that snapshots depend on. */
import type { Storage } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { checkStorage, type ImageSpec } from './images';

export interface SnapshotImage {
  name: string;
  image: Omit<ImageSpec, 'size' | 'backing'>;
  size: number;
  /** Bytes of a raw backing file. */
  backing?: number;
}

const qcow2 = (name: string, image: Partial<ImageSpec>, size: number, backing?: number): SnapshotImage => {
  return { name, image: { ...image, format: 'qcow2' }, size, backing };
};

export const SUITE: SnapshotImage[] = [
  qcow2('4 KiB clusters', { clusterSize: 4 * KIB }, MIB + 512),
  qcow2('512-byte clusters', { clusterSize: 512 }, MIB / 2 + 1024),
  qcow2('64 KiB clusters over a longer file', {}, 2 * MIB + 512, 3 * MIB),
  qcow2('version 2 over a shorter file', { version: 2, clusterSize: KIB }, MIB, MIB / 2 + 512),
  qcow2('2-bit counts', { clusterSize: 2 * KIB, refcountBits: 2 }, MIB),
  qcow2('8-bit counts', { clusterSize: KIB, refcountBits: 8 }, MIB),
  qcow2('64-bit counts', { clusterSize: 512, refcountBits: 64 }, MIB / 2),
  qcow2('subclusters over a file', { clusterSize: 16 * KIB, extendedL2: true }, MIB + 512, MIB),
];

/** What our own check finds: nothing may be wrong and nothing may leak. */
export function checkSound(storage: Storage): string | undefined {
  const { corruptions, checkErrors, leaks, messages } = checkStorage(storage);
  return corruptions + checkErrors + leaks > 0 ? messages.slice(0, 3).join('; ') : undefined;
}
