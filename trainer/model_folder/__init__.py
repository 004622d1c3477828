"""model_folder"""
