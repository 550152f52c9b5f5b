/** What our own check says of an image, apart by what it means after a power cut. */
import { CheckMessages } from '../../src/formats/check-messages';
import { asQcow2, qcow2Format } from '../../src/formats/qcow2/format';
import { scanQcow2 } from '../../src/formats/qcow2/scan';
import { probeFormat } from '../../src/formats/registry';
import type { Storage } from '../../src/storage/storage';
import { checkStorage } from '../helpers/images';

export interface Verdict {
  /** Wrong references, and what could not be checked. */
  wrong: number;
  /** Copied flags that do not say what the counts say. */
  flags: number;
  leaks: number;
  /** The first few, without leaks. */
  words: string;
}

/** Counts, not lines: a check names only the first hundred of what it finds. */
export function verdictOn(storage: Storage): Verdict {
  const { corruptions, checkErrors, leaks, messages } = checkStorage(storage);
  const words = messages
    .filter((message) => !message.startsWith('Leaked'))
    .slice(0, 5)
    .join('; ');
  if (corruptions === 0) return { wrong: checkErrors, flags: 0, leaks, words };
  if (probeFormat(storage) !== qcow2Format) return { wrong: corruptions + checkErrors, flags: 0, leaks, words };
  const { report } = scanQcow2(asQcow2(qcow2Format.readHeader(storage)), storage, new CheckMessages());
  const flags = report.copiedErrors;
  return { wrong: corruptions + checkErrors - flags, flags, leaks, words };
}
