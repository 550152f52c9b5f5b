/** What the tests of failing hosts ask of a disk. */
import { KIB, MIB } from '../../src/units';
import type { Random } from './random';

/** Bytes of a cluster, and of the disk. */
export const CLUSTER = 4 * KIB;
export const SIZE = 4 * MIB + 512;

export type Operation =
  | { kind: 'write' | 'zero' | 'allocate' | 'compressed'; offset: number; length: number }
  | { kind: 'flush' | 'maintain' | 'read' }
  | { kind: 'resize'; size: number };

/** Requests that meet every event, in an order that the seed decides. */
export function program(random: Random): Operation[] {
  const near = () => random.below(30) * CLUSTER + random.pick([0, 0, 1, 511, 2048]);
  const operations: Operation[] = [
    { kind: 'write', offset: 2 * MIB + near(), length: 700 }, // a new table
    { kind: 'write', offset: near(), length: random.between(1, 3 * CLUSTER) },
    { kind: 'zero', offset: 10 * CLUSTER, length: 3 * CLUSTER },
    { kind: 'flush' },
    { kind: 'maintain' },
    { kind: 'write', offset: near(), length: random.between(1, CLUSTER) },
    { kind: 'zero', offset: near() + 1, length: random.between(1, 9000) },
    { kind: 'allocate', offset: 40 * CLUSTER, length: 3 * CLUSTER },
    { kind: 'write', offset: 10 * CLUSTER + 5, length: 600 },
    { kind: 'read' },
    { kind: 'compressed', offset: 50 * CLUSTER, length: 3 * CLUSTER },
    { kind: 'compressed', offset: random.below(30) * CLUSTER, length: 2 * CLUSTER },
  ];
  for (let i = operations.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [operations[i], operations[j]] = [operations[j], operations[i]];
  }
  return [
    ...operations,
    { kind: 'write', offset: SIZE - 300, length: 300 },
    { kind: 'write', offset: 2 * MIB + 512 * KIB, length: 280 * CLUSTER }, // past what the file has grown by
    { kind: 'flush' },
    { kind: 'zero', offset: 3 * MIB, length: 20 * CLUSTER },
    { kind: 'flush' },
    { kind: 'resize', size: SIZE + MIB },
    { kind: 'maintain' },
    { kind: 'write', offset: 200, length: 300 },
    { kind: 'flush' },
  ];
}
