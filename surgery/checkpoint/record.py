"""Names of what a converted checkpoint carries along of its own making."""

RECORD_FOLDER = "surgery"
PLAN_NAME = f"{RECORD_FOLDER}/plan.json"
HISTORY_NAME = f"{RECORD_FOLDER}/history.json"
CALIBRATION_NAME = f"{RECORD_FOLDER}/calibration.json"
VERIFICATION_NAME = f"{RECORD_FOLDER}/verify.json"
EVALUATION_NAME = f"{RECORD_FOLDER}/evaluate.json"
